"""Search on a GPU with FAISS, and what it needs: one owner of streams and memory, and a plan of the memory.

Nothing here imports FAISS's GPU part or cupy before it is asked to.
"""
