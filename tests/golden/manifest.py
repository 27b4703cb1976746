"""Prints what QEMU reads, says and finds in the images of a folder, as JSON."""

import hashlib
import json
import os
import subprocess
import sys


def run(*arguments):
    return subprocess.run(arguments, capture_output=True, text=True)


def as_opened(name):
    """The arguments that name an image to a tool."""
    kind = name.rpartition(".")[2]
    if not name.startswith(("encrypted-", "luks")):
        return ["-f", kind, name]
    option = "key-secret" if kind == "luks" else "encrypt.key-secret"
    return ["--object", "secret,id=s,data=opensesame", "--image-opts",
            f"driver={kind},file.filename={name},{option}=s"]


def describe(name):
    info = run("qemu-img", "info", "--output=json", name)
    entry = {"name": name, "opens": info.returncode == 0}
    if not entry["opens"]:
        return entry
    entry["info"] = json.loads(info.stdout)
    # These depend on where the image lies.
    for key in ("actual-size", "filename", "full-backing-filename"):
        entry["info"].pop(key, None)
    converted = run("qemu-img", "convert", "-O", "raw", *as_opened(name), "content")
    assert converted.returncode == 0, converted.stderr
    with open("content", "rb") as content:
        entry["sha256"] = hashlib.sha256(content.read()).hexdigest()
    os.unlink("content")
    if name.endswith((".luks", ".qcow")):
        return entry  # there is nothing to check, or QEMU cannot
    check = run("qemu-img", "check", "--output=json", *as_opened(name))
    entry["check"] = json.loads(check.stdout)
    entry["check"].pop("filename", None)
    entry["check-exit-code"] = check.returncode
    return entry


os.chdir(sys.argv[1])
images = sorted(name for name in os.listdir() if name.endswith((".qcow2", ".qcow", ".vdi", ".luks")))
json.dump([describe(name) for name in images], sys.stdout, indent=1)
print()
