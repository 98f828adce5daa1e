"""Makes the primary context current, as long as the process runs."""

import ctypes

ctypes.CDLL("libcuda.so.1").fake_push(ctypes.c_void_p(0x10))
