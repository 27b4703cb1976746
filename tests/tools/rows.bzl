"""Tests whose cases are the rows of a file (row_file.h)."""

load("//build_defs:cc.bzl", "cc_test")

def rows_test(name, shard_count = 1, tags = [], needs_threads = False):
    """Runs the rows of rows/<name>.rows with QEMU's programs and with ours."""
    rows = "rows/%s.rows" % name
    cc_test(
        name = "rows_%s" % name,
        size = "medium",
        srcs = ["rows_test.cc"],
        args = [
            "$(rootpath //tools:spindle-img)",
            "$(rootpath //tools:spindle-io)",
            "$(rootpath %s)" % rows,
        ],
        data = [
            rows,
            "//tools:spindle-img",
            "//tools:spindle-io",
        ],
        shard_count = shard_count,
        target_compatible_with = select({
            "//:no_tbb": ["@platforms//:incompatible"] if needs_threads else [],
            "//conditions:default": [],
        }),
        # Other people's programs take most of the time, and a sanitizer starts
        # ours slowly: what these programs call is tested by itself.
        tags = tags + ["default-only"],
        deps = [
            ":row_file",
            ":row_runner",
            "//tests/support:qemu_tools",
            "@com_google_googletest//:gtest",
        ],
    )
