"""fuzz_target(): a libFuzzer target, and a test that replays its corpus."""

load("//build_defs:cc.bzl", "cc_binary", "cc_library", "cc_test")

def fuzz_target(name, srcs, deps):
    """Makes NAME (to be built with --config=fuzz) and NAME_corpus_test.

    Args:
      name: what it fuzzes, with the ending _fuzzer.
      srcs: one source, which defines LLVMFuzzerTestOneInput.
      deps: what that needs.
    """
    cc_library(
        name = name + "_lib",
        srcs = srcs,
        alwayslink = True,
        deps = deps,
    )

    # Links only with --config=fuzz, so only when it is named.
    cc_binary(
        name = name,
        linkopts = ["-fsanitize=fuzzer"],
        tags = ["manual"],
        deps = [":" + name + "_lib"],
    )
    cc_test(
        name = name + "_corpus_test",
        size = "small",
        srcs = ["corpus_test.cc"],
        args = ["tests/fuzz/corpus/" + name],
        data = native.glob(["corpus/" + name + "/*"]),
        deps = [
            ":" + name + "_lib",
            "@com_google_googletest//:gtest",
        ],
    )
