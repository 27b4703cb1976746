#!/usr/bin/env python3
"""Counts the test cases of one Bazel run.

Reads the build event file that `bazel test --build_event_json_file=FILE` wrote
and the test.xml of each test that it names. Prints "PASSED FAILED SKIPPED" and,
on stderr, the name of each case that failed. A test without cases of its own
counts as one; so does a test that died, timed out or did not build. What is not
a test and did not build counts as one failure together.
"""

import json
import sys
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree


def read_events(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                return  # Bazel was interrupted while it wrote.


def count_cases(xml_path, label):
    """Returns (passed, failed, skipped) of one test.xml."""
    passed = failed = skipped = 0
    for case in ElementTree.parse(xml_path).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}".strip(".")
        if case.find("failure") is not None or case.find("error") is not None:
            failed += 1
            print(f"FAILED {label} {name}", file=sys.stderr)
        elif case.find("skipped") is not None or case.get("status") == "notrun":
            skipped += 1
        else:
            passed += 1
    return passed, failed, skipped


def main():
    runs = {}  # (label, run, shard) -> the last attempt's testResult
    tests, not_built = set(), set()  # labels
    for event in read_events(sys.argv[1]):
        identity = event.get("id", {})
        if "testResult" in identity and "testResult" in event:
            key = identity["testResult"]
            runs[key["label"], key.get("run", 1), key.get("shard", 1)] = event["testResult"]
        elif "targetConfigured" in identity and event.get("configured", {}).get("testSize"):
            tests.add(identity["targetConfigured"]["label"])
        elif "targetCompleted" in identity and "completed" in event:
            # The protocol leaves "success" out where it is false. A target that
            # is skipped as incompatible has "aborted" instead of "completed".
            if not event["completed"].get("success"):
                not_built.add(identity["targetCompleted"]["label"])

    total = [0, 0, 0]
    for (label, _, _), result in sorted(runs.items()):
        good = result.get("status") in ("PASSED", "FLAKY")
        counts = (0, 0, 0)
        for output in result.get("testActionOutput", []):
            if output["name"] == "test.xml" and output.get("uri", "").startswith("file:"):
                path = urllib.request.url2pathname(urllib.parse.urlparse(output["uri"]).path)
                try:
                    counts = count_cases(path, label)
                except (OSError, ElementTree.ParseError) as error:
                    print(f"cannot read {path}: {error}", file=sys.stderr)
        if good and counts == (0, 0, 0):
            counts = (1, 0, 0)
        if not good and counts[1] == 0:
            print(f"FAILED {label} ({result.get('status')})", file=sys.stderr)
            counts = (counts[0], 1, counts[2])
        total = [a + b for a, b in zip(total, counts)]

    for label in sorted(not_built):
        print(f"FAILED {label} (did not build)", file=sys.stderr)
    # A library that breaks takes its tests with it; it counts where it has none.
    total[1] += len(not_built & tests) or min(len(not_built), 1)
    print(*total)


if __name__ == "__main__":
    main()
