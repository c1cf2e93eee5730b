"""Calls that reach something: what schemathesis cannot know of a server is put in here, just before a call is sent.

Written and read by `cargo xtask test --api`; the file that FTAGENT_API_WORLD names says what there is.
"""

import itertools
import json
import os
import re

import schemathesis

with open(os.environ["FTAGENT_API_WORLD"], encoding="utf-8") as file:
    WORLD = json.load(file)

NODES = itertools.cycle(WORLD["nodes"])
# Things by collection: one to show and change, and some to delete.
KEPT = WORLD["kept"]
SPARE = WORLD["spare"]
NUMBER = re.compile(r"[0-9]{1,18}")
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
keys = itertools.count()
turns = itertools.count()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Spreads calls over many nodes, and every second path leads to something that is there."""
    if case.path.startswith("/api/v1/agent/") and WORLD["as_nodes"]:
        # A node has 5 heartbeats a minute; many nodes have many.
        node = next(NODES)
        case.headers["Authorization"] = "Bearer " + node["key"]
        case.headers["X-Node-UUID"] = node["uuid"]
        if "uuid" in (case.path_parameters or {}) and UUID.fullmatch(str(case.path_parameters["uuid"])):
            case.path_parameters["uuid"] = node["incident"]
        return
    stay_here(case.body)
    key = case.headers.get("Idempotency-Key")
    if key and len(key) <= 200:
        # A key that was used for another body is refused, which is all that would be seen.
        case.headers["Idempotency-Key"] = f"{key}-{next(keys)}"
    collection = case.path.split("/{")[0]
    for name, value in (case.path_parameters or {}).items():
        form = UUID if name == "uuid" else NUMBER
        if not form.fullmatch(str(value)):
            continue
        if case.method.upper() == "DELETE":
            spare = SPARE.get(collection)
            there = spare.pop() if spare else 999_999_999 if form is NUMBER else UNKNOWN
            case.path_parameters[name] = type(value)(there)
        elif collection in KEPT and next(turns) % 2 == 0:
            # A number stays one, and text stays text: the case is judged by its schema afterwards.
            case.path_parameters[name] = type(value)(KEPT[collection])


def stay_here(body):
    """Nothing that is made here sends anything to another machine."""
    if not isinstance(body, dict):
        return
    for place, name in ((body.get("settings"), "url"), (body, "endpoint")):
        if isinstance(place, dict) and isinstance(place.get(name), str) and place[name].startswith("http"):
            place[name] = "http://127.0.0.1:9/"


UNKNOWN = "00000000-0000-4000-8000-000000000000"
