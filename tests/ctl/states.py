"""Watchers as `status` tells of them."""

from __future__ import annotations

from typing import Any

from tests.canned import Reply

WEB: dict[str, Any] = {
    "state": "active",
    "want": "up",
    "numprocesses": 2,
    "ready": 2,
    "restarts": 0,
    "uptime": 3723.0,
    "retry_in": None,
    "reason": None,
    "problem": None,
    "processes": [
        {
            "wid": wid,
            "pid": 811 + wid,
            "state": "running",
            "uptime": 3723.0,
            "restarts": 0,
            "retry_in": None,
            "reason": None,
            "last_output": None,
        }
        for wid in (1, 2)
    ],
}
BROKEN: dict[str, Any] = {
    "state": "flapping",
    "want": "up",
    "numprocesses": 1,
    "ready": 0,
    "restarts": 17,
    "uptime": None,
    "retry_in": 6.6,
    "reason": "exit code 1",
    "problem": None,
    "processes": [
        {
            "wid": 1,
            "pid": None,
            "state": "flapping",
            "uptime": None,
            "restarts": 17,
            "retry_in": 6.6,
            "reason": "exit code 1",
            "last_output": "Traceback\nImportError: \x1b[2Jno module",
        }
    ],
}


def status_of(**watchers: dict[str, Any]) -> Reply:
    return {"statuses": {name: "active" for name in watchers}, "watchers": watchers}
