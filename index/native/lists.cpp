// Inverted lists whose rows are kept as bytes, and their search: see lists.py.
//
// A row is scale * (code - 128), a code for each component; a query is rounded to signed bytes in the same way, so that a
// score is one integer product, of which processors do 32 or 64 at once. What rounding may have hidden is kept: a row stays a
// candidate as long as its score, and the error that rounding may have made, could be among the best. The candidates are scored
// again with the matrix's own rows.
//
// Plain loops, which the compiler turns into what the processor has: no intrinsics, so that it is the same on every processor.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>
#include <vector>

namespace {

constexpr int64_t kLine = 64;         // bytes that a processor reads at once
constexpr int64_t kRowsAtOnce = 256;  // rows whose scores are made before any is looked at
constexpr int64_t kTogether = 16;     // rows of which most are ruled out by one look
constexpr int64_t kAhead = 4;         // lists between the one that is read and the one that is fetched
constexpr int64_t kSideBySide = 32;   // centroids that are compared at once
constexpr int64_t kBuckets = 1024;
constexpr int64_t kEverything = -1;
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr float kErrors = 3.0f;  // standard errors of rounding that a score may be off, for the row and for the query each

struct Candidate {
  float score;
  float most;  // what the score may be, rounding considered
  int32_t slot;
};

// Rows in one block of memory: codes (room, stride), scales (room,) float32, slots (room,) int32, from the beginning of a line of
// the cache, so that no row of 64 bytes lies in two.
class List {
 public:
  List() = default;
  List(const List&) = delete;
  List& operator=(const List&) = delete;
  ~List() { std::free(block_); }

  int64_t size() const { return size_; }
  int64_t bytes(int64_t stride) const { return room_ * (stride + 8); }
  uint8_t* codes() const { return block_; }
  float* scales(int64_t stride) const { return reinterpret_cast<float*>(block_ + room_ * stride); }
  int32_t* slots(int64_t stride) const { return reinterpret_cast<int32_t*>(block_ + room_ * (stride + 4)); }

  void Reserve(int64_t rows, int64_t stride) {
    if (rows <= room_) return;
    const int64_t per_step = kLine / 4;  // scales and slots fill whole lines too
    const int64_t room = (std::max<int64_t>(rows, room_ * 3 / 2) + per_step - 1) / per_step * per_step;
    List grown;
    grown.block_ = static_cast<uint8_t*>(std::aligned_alloc(kLine, room * (stride + 8)));
    if (grown.block_ == nullptr) throw std::bad_alloc();
    grown.room_ = room;
    if (size_ > 0) {
      std::memcpy(grown.codes(), codes(), size_ * stride);
      std::memcpy(grown.scales(stride), scales(stride), size_ * sizeof(float));
      std::memcpy(grown.slots(stride), slots(stride), size_ * sizeof(int32_t));
    }
    std::swap(block_, grown.block_);
    room_ = room;
  }

  // There must be room.
  int64_t Push(int64_t stride, float scale, int32_t slot) {
    scales(stride)[size_] = scale;
    slots(stride)[size_] = slot;
    return size_++;
  }

  // The last row takes the place; its slot is returned.
  int32_t Remove(int64_t place, int64_t stride) {
    const int64_t last = --size_;
    if (place != last) std::memcpy(codes() + place * stride, codes() + last * stride, stride);
    scales(stride)[place] = scales(stride)[last];
    return slots(stride)[place] = slots(stride)[last];
  }

 private:
  uint8_t* block_ = nullptr;
  int32_t room_ = 0;
  int32_t size_ = 0;
};

struct Lists {
  int64_t dim;
  int64_t stride;  // bytes of a row: the components and what fills it up
  std::vector<float> centroids;  // (count / 32 rounded up, dim, 32): by component, so that 32 scores are made side by side
  std::vector<List> lists;
  std::vector<int32_t> place_of;  // by slot: where in its list the row is
  float longest = 0.0f;           // the largest norm of any row so far

  Lists(int64_t count, int64_t dim_, const float* rows)
      : dim(dim_),
        stride((dim_ + kLine - 1) / kLine * kLine),
        centroids((count + kSideBySide - 1) / kSideBySide * kSideBySide * dim_),
        lists(count) {
    for (int64_t i = 0; i < count; ++i) {
      float* block = centroids.data() + i / kSideBySide * kSideBySide * dim;
      for (int64_t d = 0; d < dim; ++d) block[d * kSideBySide + i % kSideBySide] = rows[i * dim + d];
    }
  }
};

// The matrix's rows on this machine: chunks of so many rows, each `width` numbers apart, of float32 or float16.
struct Rows {
  const void* const* chunks;
  int64_t chunk_rows;
  int64_t width;
  int64_t is_half;
};

float Value(float number) { return number; }

float Value(uint16_t half) {  // a finite float16
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &magnitude, sizeof value);
  value *= 0x1p112f;
  return half & 0x8000 ? -value : value;
}

// In 16 sums side by side, added up in pairs, which is how a processor can do it fast.
template <typename Number>
inline float Dot(const Number* a, const float* b, int64_t n) {
  float sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int64_t lane = 0; lane < 16; ++lane) sums[lane] += Value(a[i + lane]) * b[i + lane];
  }
  for (; i < n; ++i) sums[i % 16] += Value(a[i]) * b[i];
  for (int64_t width = 8; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return sums[0];
}

// The products of n rows of codes, each of kStride bytes, with a query's: known when compiled, so that no loop has a rest.
template <int64_t kStride>
void Products(const uint8_t* codes, int64_t n, int64_t, const int8_t* query, int32_t* products) {
  for (int64_t r = 0; r < n; ++r) {
    int32_t sum = 0;
    for (int64_t i = 0; i < kStride; ++i) sum += static_cast<int32_t>(codes[r * kStride + i]) * static_cast<int32_t>(query[i]);
    products[r] = sum;
  }
}

void AnyProducts(const uint8_t* codes, int64_t n, int64_t stride, const int8_t* query, int32_t* products) {
  for (int64_t r = 0; r < n; ++r) {
    int32_t sum = 0;
    for (int64_t i = 0; i < stride; ++i) sum += static_cast<int32_t>(codes[r * stride + i]) * static_cast<int32_t>(query[i]);
    products[r] = sum;
  }
}

auto ProductsOf(int64_t stride) {
  switch (stride) {
    case 64:
      return Products<64>;
    case 128:
      return Products<128>;
    case 192:
      return Products<192>;
    case 256:
      return Products<256>;
    case 384:
      return Products<384>;
    default:
      return AnyProducts;
  }
}

float LargestOf(const float* values, int64_t n) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(values[i]));
  return largest;
}

// The numbers of the `count` largest of n scores, roughly the largest first.
void Largest(const float* scores, int64_t n, int64_t count, std::vector<int64_t>& found) {
  float least = scores[0], most = scores[0];
#pragma omp simd reduction(min : least) reduction(max : most)
  for (int64_t i = 0; i < n; ++i) {
    least = std::min(least, scores[i]);
    most = std::max(most, scores[i]);
  }
  const float per_bucket = most > least ? static_cast<float>(kBuckets - 1) / (most - least) : 0.0f;
  std::vector<int32_t> bucket_of(n);
  int64_t ends[kBuckets + 1] = {};
  for (int64_t i = 0; i < n; ++i) bucket_of[i] = static_cast<int32_t>((most - scores[i]) * per_bucket);
  for (int64_t i = 0; i < n; ++i) ++ends[bucket_of[i] + 1];
  for (int64_t b = 0; b < kBuckets; ++b) ends[b + 1] += ends[b];
  int64_t last = 0;  // the bucket in which the count-th largest lies
  while (ends[last + 1] < count) ++last;
  const int64_t first_of_last = ends[last];
  found.resize(ends[last + 1]);
  for (int64_t i = 0; i < n; ++i) {
    if (bucket_of[i] <= last) found[ends[bucket_of[i]]++] = i;
  }
  std::nth_element(found.begin() + first_of_last, found.begin() + count - 1, found.end(),
                   [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  found.resize(count);
}

// The best k candidates, and all others that may be among them.
class Best {
 public:
  // error: how far all scores may be off together, in either direction.
  Best(int64_t k, float error) : k_(k), error_(error), limit_(2 * k + 64) { held_.reserve(limit_ + 1); }

  float threshold() const { return threshold_; }

  void Add(const Candidate& one) {
    held_.push_back(one);
    if (static_cast<int64_t>(held_.size()) > limit_) {
      Shrink();
      limit_ = std::max(2 * k_ + 64, 2 * static_cast<int64_t>(held_.size()));
    }
  }

  std::vector<Candidate>& Finish() {
    Shrink();
    return held_;
  }

 private:
  void Shrink() {
    if (static_cast<int64_t>(held_.size()) <= k_) return;
    std::nth_element(held_.begin(), held_.begin() + k_ - 1, held_.end(),
                     [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    threshold_ = std::max(threshold_, held_[k_ - 1].score - error_);
    held_.erase(std::remove_if(held_.begin(), held_.end(), [&](const Candidate& one) { return one.most < threshold_; }),
                held_.end());
  }

  int64_t k_;
  float error_;
  int64_t limit_;
  float threshold_ = kNothing;
  std::vector<Candidate> held_;
};

// Inlined, since compilers leave out calls that do nothing but fetch.
__attribute__((always_inline)) inline void Fetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

__attribute__((always_inline)) inline void Fetch(const List& list, int64_t stride) {
  Fetch(list.codes(), list.size() * stride);
  Fetch(list.scales(stride), list.size() * 4);
  Fetch(list.slots(stride), list.size() * 4);
}

// What may be among the best k rows of these lists. bits: what may be returned, by slot, little-endian; slots behind its
// bytes may not. bit_bytes: kEverything if there are no bits.
std::vector<Candidate> Scan(const Lists& index, const float* query, int64_t k, const int64_t* which, int64_t count,
                            const uint8_t* bits, int64_t bit_bytes) {
  const int64_t stride = index.stride;
  const float largest = LargestOf(query, index.dim);
  const float unit = largest > 0.0f ? largest / 127.0f : 1.0f;  // of the query's codes
  std::vector<int8_t> codes(stride, 0);
  int32_t offset = 0;
  for (int64_t i = 0; i < index.dim; ++i) {
    codes[i] = static_cast<int8_t>(std::lrint(query[i] / unit));
    offset += 128 * codes[i];
  }
  // Rounding to steps of one unit: a standard deviation of 1 / sqrt(12) of it a component.
  const float row_error = kErrors * std::sqrt(Dot(query, query, index.dim) / 12.0f);  // times the row's scale
  Best best(k, kErrors * unit * index.longest / std::sqrt(12.0f));
  const auto products_of = ProductsOf(stride);
  int32_t products[kRowsAtOnce];
  float scores[kRowsAtOnce], most[kRowsAtOnce];
  for (int64_t i = 0; i < std::min(kAhead, count); ++i) Fetch(index.lists[which[i]], stride);
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) Fetch(index.lists[which[i + kAhead]], stride);
    const List& list = index.lists[which[i]];
    const int64_t size = list.size();
    for (int64_t start = 0; start < size; start += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, size - start);
      const uint8_t* row = list.codes() + start * stride;
      const float* scales = list.scales(stride) + start;
      const int32_t* slots = list.slots(stride) + start;
      products_of(row, rows, stride, codes.data(), products);
      for (int64_t r = 0; r < rows; ++r) {
        scores[r] = static_cast<float>(products[r] - offset) * unit * scales[r];
        most[r] = scores[r] + row_error * scales[r];
      }
      std::fill(most + rows, most + (rows + kTogether - 1) / kTogether * kTogether, kNothing);
      for (int64_t first = 0; first < rows; first += kTogether) {
        const float threshold = best.threshold();
        int any = 0;
        for (int64_t r = first; r < first + kTogether; ++r) any |= most[r] > threshold;
        if (!any) continue;
        for (int64_t r = first; r < first + kTogether; ++r) {
          if (!(most[r] > best.threshold())) continue;
          const int64_t slot = slots[r];
          if (bit_bytes >= 0 && (slot >> 3 >= bit_bytes || !(bits[slot >> 3] >> (slot & 7) & 1))) continue;
          best.Add({scores[r], most[r], slots[r]});
        }
      }
    }
  }
  return std::move(best.Finish());
}

template <typename Number>
void ScoreAll(const Rows& rows, const float* query, int64_t dim, std::vector<Candidate>& found) {
  const auto row_of = [&](int32_t slot) {
    return static_cast<const Number*>(rows.chunks[slot / rows.chunk_rows]) + slot % rows.chunk_rows * rows.width;
  };
  for (const Candidate& one : found) {
    const auto* row = reinterpret_cast<const char*>(row_of(one.slot));
    for (int64_t at = 0; at < dim * static_cast<int64_t>(sizeof(Number)); at += kLine) __builtin_prefetch(row + at);
  }
  for (Candidate& one : found) one.score = Dot(row_of(one.slot), query, dim);
}

// The best k by the matrix's rows, best first; -1 behind them.
void Rank(const Rows& rows, const float* query, int64_t dim, int64_t k, std::vector<Candidate>& found, int64_t* slots,
          float* scores) {
  if (rows.is_half) {
    ScoreAll<uint16_t>(rows, query, dim, found);
  } else {
    ScoreAll<float>(rows, query, dim, found);
  }
  const int64_t count = std::min<int64_t>(k, found.size());
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.slot < b.slot);
  };
  std::nth_element(found.begin(), found.begin() + count, found.end(), better);
  std::sort(found.begin(), found.begin() + count, better);
  for (int64_t i = 0; i < count; ++i) {
    slots[i] = found[i].slot;
    scores[i] = found[i].score;
  }
  std::fill(slots + count, slots + k, -1);
  std::fill(scores + count, scores + k, kNothing);
}

// Whether a query's scores are numbers that can be compared, on which sorting relies. To a query whose are not, nothing is near.
bool IsComparable(const Lists& index, const float* query) {
  return Dot(query, query, index.dim) < std::numeric_limits<float>::max();
}

void Nearest(const Lists& index, const float* query, int64_t probes, std::vector<int64_t>& which) {
  std::vector<float> scores(index.centroids.size() / index.dim, 0.0f);
  for (size_t first = 0; first < scores.size(); first += kSideBySide) {
    const float* block = index.centroids.data() + first * index.dim;
    float sums[kSideBySide] = {};
    for (int64_t d = 0; d < index.dim; ++d) {
      for (int64_t i = 0; i < kSideBySide; ++i) sums[i] += block[d * kSideBySide + i] * query[d];
    }
    std::copy(sums, sums + kSideBySide, scores.begin() + first);
  }
  Largest(scores.data(), index.lists.size(), probes, which);
}

}  // namespace

extern "C" {

// (count, dim) centroids. Null if there is no memory.
Lists* lists_new(int64_t count, int64_t dim, const float* centroids) {
  try {
    return new Lists(count, dim, centroids);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void lists_free(Lists* index) { delete index; }

int64_t lists_bytes(const Lists* index) {
  int64_t bytes = 4 * index->centroids.capacity() + 4 * index->place_of.capacity();
  for (const List& list : index->lists) {
    bytes += sizeof(List) + list.bytes(index->stride);
  }
  return bytes;
}

// Adds rows, (n, dim), of slots that are in no list. 0, or -1 if there is no memory: then nothing is added.
int lists_add(Lists* index, int64_t n, const int64_t* slots, const float* rows, const int32_t* lists) {
  try {
    std::vector<int64_t> added(index->lists.size(), 0);
    int64_t extent = index->place_of.size();
    for (int64_t i = 0; i < n; ++i) {
      ++added[lists[i]];
      extent = std::max(extent, slots[i] + 1);
    }
    if (extent > static_cast<int64_t>(index->place_of.size())) {
      index->place_of.resize(std::max<int64_t>(extent, index->place_of.size() + index->place_of.size() / 2));
    }
    for (size_t l = 0; l < added.size(); ++l) {
      if (added[l] > 0) index->lists[l].Reserve(index->lists[l].size() + added[l], index->stride);
    }
  } catch (const std::bad_alloc&) {
    return -1;
  }
  const int64_t dim = index->dim, stride = index->stride;
  for (int64_t i = 0; i < n; ++i) {
    List& list = index->lists[lists[i]];
    const float* row = rows + i * dim;
    const float largest = LargestOf(row, dim);
    const float scale = largest > 0.0f ? largest / 127.0f : 1.0f;
    uint8_t* codes = list.codes() + list.size() * stride;
    for (int64_t d = 0; d < dim; ++d) codes[d] = static_cast<uint8_t>(std::lrint(row[d] / scale) + 128);
    std::memset(codes + dim, 128, stride - dim);
    index->longest = std::max(index->longest, std::sqrt(Dot(row, row, dim)));
    index->place_of[slots[i]] = list.Push(stride, scale, slots[i]);
  }
  return 0;
}

// Takes out the rows of n slots, each in the list that is given: the last row of a list takes the place.
void lists_remove(Lists* index, int64_t n, const int64_t* slots, const int32_t* lists) {
  for (int64_t i = 0; i < n; ++i) {
    const int32_t place = index->place_of[slots[i]];
    index->place_of[index->lists[lists[i]].Remove(place, index->stride)] = place;
  }
}

// The best k rows of each query's `probes` nearest lists: (count, dim) -> (count, k) slots and scores. -1: no memory.
int lists_search(const Lists* index, const Rows* rows, int64_t count, const float* queries, int64_t k, int64_t probes,
                 int64_t threads, int64_t* slots, float* scores) {
  int failed = 0;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1 && count > 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      const float* query = queries + i * index->dim;
      std::vector<Candidate> found;
      if (IsComparable(*index, query)) {
        std::vector<int64_t> which;
        Nearest(*index, query, probes, which);
        found = Scan(*index, query, k, which.data(), probes, nullptr, kEverything);
      }
      Rank(*rows, query, index->dim, k, found, slots + i * k, scores + i * k);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = -1;
    }
  }
  return failed;
}

// The same for one query, in the lists that are given, of what a bitmap lets through.
int lists_search_in(const Lists* index, const Rows* rows, const float* query, int64_t k, const int64_t* which, int64_t count,
                    const uint8_t* bits, int64_t bit_bytes, int64_t* slots, float* scores) {
  try {
    std::vector<Candidate> found;
    if (IsComparable(*index, query)) found = Scan(*index, query, k, which, count, bits, bit_bytes);
    Rank(*rows, query, index->dim, k, found, slots, scores);
  } catch (const std::bad_alloc&) {
    return -1;
  }
  return 0;
}

// What may be among the best k of the nearest lists by bytes alone, at most `room`: how many, or -1.
int64_t lists_near(const Lists* index, const float* query, int64_t k, int64_t probes, int64_t room, int64_t* slots) {
  if (!IsComparable(*index, query)) return 0;
  try {
    std::vector<int64_t> which;
    Nearest(*index, query, probes, which);
    auto found = Scan(*index, query, k, which.data(), probes, nullptr, kEverything);
    const int64_t count = std::min<int64_t>(room, found.size());
    std::partial_sort(found.begin(), found.begin() + count, found.end(),
                      [](const Candidate& a, const Candidate& b) { return a.score > b.score; });
    for (int64_t i = 0; i < count; ++i) slots[i] = found[i].slot;
    return count;
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

}  // extern "C"
