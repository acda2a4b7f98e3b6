"""Which engine serves what, and what is said when it cannot be had."""

import pytest

from index.choice import EXACT_ON_CPU_MAX, ChoiceError, FaissBuild, choose, installed_faiss

CPU = FaissBuild(("faiss-cpu",), "1.15.1")
GPU = FaissBuild(("faiss-gpu",), "1.15.1", on_gpu=True)
NONE = FaissBuild(())


def native() -> str:
    return ""


def no_compiler() -> str:
    return "there is no C++ compiler; install g++"


@pytest.mark.parametrize(
    ("items", "device", "faiss", "kind"),
    [
        (0, "cpu", CPU, "exact"),
        (EXACT_ON_CPU_MAX, "cpu", CPU, "exact"),
        (EXACT_ON_CPU_MAX + 1, "cpu", CPU, "ivf"),
        (EXACT_ON_CPU_MAX + 1, "cpu", GPU, "ivf"),
        (EXACT_ON_CPU_MAX + 1, "cpu", NONE, "exact"),
        (10**9, "cuda:1", GPU, "exact"),
        (10**9, "cuda", CPU, "exact"),
    ],
)
def test_auto_chooses_by_size_and_device_and_never_what_is_not_installed(items: int, device: str, faiss: FaissBuild, kind: str):
    choice = choose("auto", items=items, device=device, faiss=faiss, why_not_native=native)
    assert choice.kind == kind
    assert f"{items:,} items" in choice.why
    assert str(choice).startswith(f"index {kind}: ")


def test_the_reason_says_what_to_install_where_something_faster_could_be():
    assert "pip install -e '.[cpu]'" in choose("auto", items=10**6, device="cpu", faiss=NONE, why_not_native=native).why


def test_without_a_compiler_faiss_searches_and_the_reason_says_what_to_install():
    choice = choose("auto", items=10**6, device="cpu", faiss=CPU, why_not_native=no_compiler)
    assert choice == (
        "faiss-ivf",
        "1,000,000 items, more than 50,000 on a CPU; there is no C++ compiler; install g++ to search faster",
    )


def test_nobody_compiles_where_it_would_decide_nothing():
    def fail() -> str:
        raise AssertionError("asked")

    choose("auto", items=EXACT_ON_CPU_MAX, device="cpu", faiss=CPU, why_not_native=fail)
    choose("auto", items=10**9, device="cuda", faiss=CPU, why_not_native=fail)
    choose("faiss-ivf", items=10**9, device="cpu", faiss=CPU, why_not_native=fail)


@pytest.mark.parametrize(
    ("kind", "device", "faiss"),
    [("exact", "cuda", NONE), ("ivf", "cpu", CPU), ("faiss-ivf", "cpu", CPU), ("faiss-gpu", "cuda", GPU)],
)
def test_what_is_configured_is_used_at_any_size(kind: str, device: str, faiss: FaissBuild):
    for items in (0, 10**9):
        assert choose(kind, items=items, device=device, faiss=faiss, why_not_native=native).kind == kind


@pytest.mark.parametrize(
    ("kind", "device", "faiss", "says"),
    [
        ("faiss-gpu", "cpu", GPU, "faiss-gpu searches on a GPU and the device is cpu; use --device cuda, or ivf"),
        ("faiss-gpu", "cuda", CPU, "faiss-gpu needs FAISS's GPU build, which is not installed; pip install -e '.[gpu]'"),
        ("faiss-gpu", "cuda", NONE, "pip install -e '.[gpu]', in an environment of its own"),
        ("ivf", "cpu", NONE, "ivf needs FAISS, which is not installed; pip install -e '.[cpu]'"),
        ("ivf", "cpu", CPU, "ivf is native code, and there is no C++ compiler; install g++, or use faiss-ivf"),
        ("ivf", "cuda", GPU, "ivf searches on the CPU and the device is cuda; use exact, or --device cpu"),
        ("faiss-ivf", "cpu", NONE, "faiss-ivf needs FAISS, which is not installed; pip install -e '.[cpu]'"),
        ("faiss-ivf", "cuda", GPU, "faiss-ivf searches on the CPU and the device is cuda; use exact, or --device cpu"),
        ("hnsw", "cpu", CPU, "there is no index 'hnsw'; choose one of auto, exact, ivf, faiss-ivf, faiss-gpu"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line_that_says_what_to_do(kind: str, device: str, faiss: FaissBuild, says: str):
    with pytest.raises(ChoiceError) as caught:
        choose(kind, items=1, device=device, faiss=faiss, why_not_native=no_compiler)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["auto", "exact"])
def test_two_faiss_wheels_in_one_folder_are_refused_whatever_is_configured(kind: str):
    both = FaissBuild(("faiss-cpu", "faiss-gpu"), "1.15.1", on_gpu=True)
    with pytest.raises(ChoiceError, match="faiss-cpu and faiss-gpu are both installed and overwrite each other's files"):
        choose(kind, items=1, device="cpu", faiss=both, why_not_native=native)


@pytest.mark.parametrize(("package", "on_gpu", "built"), [("faiss-cpu", True, "GPUs"), ("faiss-gpu", False, "CPUs")])
def test_files_that_another_wheel_left_behind_are_noticed(package: str, on_gpu: bool, built: str):
    with pytest.raises(ChoiceError, match=f"{package} is installed but its files are a build for {built}"):
        FaissBuild((package,), "1.15.1", on_gpu).check()


def test_a_faiss_that_no_wheel_brought_is_taken_as_it_is():
    assert choose("faiss-ivf", items=1, device="cpu", faiss=FaissBuild((), "1.15.1"), why_not_native=native).kind == "faiss-ivf"


def test_the_faiss_of_this_environment_is_whole():
    found = installed_faiss()
    found.check()
    assert found.version
    assert found.on_gpu == (found.packages == ("faiss-gpu",))
