from __future__ import annotations

import os

# In a process of their own, which tests/runtime/engines/test_tensorrt.py starts: a driver, once loaded, stays.
collect_ignore_glob = [] if os.environ.get("FAKE_GPU") else ["test_*.py"]
