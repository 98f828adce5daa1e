"""What examples/pycuda_slices.py asks of PyCUDA, by its documentation, on libcuda.cpp: PyCUDA itself is built from source."""
