from __future__ import annotations

import os

# In a process of their own, which tests/runtime/engines/test_tensorrt.py starts: a driver, once loaded, stays.
collect_ignore = [] if os.environ.get("FAKE_GPU") else ["test_native_engine.py", "test_on_device.py", "test_pycuda_slices.py"]
