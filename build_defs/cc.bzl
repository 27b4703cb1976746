"""The C++ rules of this workspace: Bazel's own, with precompiled headers.

Each BUILD file loads them. A source must include what it uses all the same: a
build that has no precompiled headers (-c opt, --config=gcc) would fail.
"""

_PRECOMPILE = "//build_defs:precompile"

def _uses_gtest(deps):
    return type(deps) == "list" and any(["googletest" in dep for dep in deps])

def _is_c(srcs):
    return type(srcs) == "list" and any([src.endswith(".c") for src in srcs])

def _with_precompiled_header(rule, name, srcs = [], deps = [], copts = [], **kwargs):
    if srcs and not _is_c(srcs):
        header = "testing" if _uses_gtest(deps) else "common"
        deps = deps + select({
            _PRECOMPILE: ["//build_defs:" + header],
            "//conditions:default": [],
        })
        copts = copts + select({
            _PRECOMPILE: [
                # What layering_check turns on; without module maps it does
                # nothing, but both must be compiled alike.
                "-fmodules-strict-decluse",
                "-include-pch",
                "$(BINDIR)/build_defs/%s.pch" % header,
                "-Xclang",
                "-isysroot",
                "-Xclang",
                ".",
            ],
            "//conditions:default": [],
        })
    rule(name = name, srcs = srcs, deps = deps, copts = copts, **kwargs)

def cc_library(name, **kwargs):
    _with_precompiled_header(native.cc_library, name, **kwargs)

def cc_binary(name, **kwargs):
    _with_precompiled_header(native.cc_binary, name, **kwargs)

def cc_test(name, **kwargs):
    _with_precompiled_header(native.cc_test, name, **kwargs)
