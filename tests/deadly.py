"""A request that kills; in a module of its own, which a spawned process imports without the tests' other needs."""

from __future__ import annotations

import os
import signal
from typing import Any

from runtime.job import Request, Task


class Deadly(Request):
    """One of the inputs is the death of its process each time, another the first time."""

    def options(self, task: Task) -> dict[str, Any]:
        died = task.output.with_name("died")
        if task.source.name == "b.nii.gz" or (task.source.name == "c.nii.gz" and not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().options(task)
