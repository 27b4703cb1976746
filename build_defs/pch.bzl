"""Precompiled headers: what most sources include, parsed once per configuration.

Only clang's, only in unoptimised builds: see //build_defs:precompile.
"""

load("@bazel_tools//tools/build_defs/cc:action_names.bzl", "CPP_COMPILE_ACTION_NAME")
load("@bazel_tools//tools/cpp:toolchain_utils.bzl", "find_cpp_toolchain")

def _precompiled_header_impl(ctx):
    toolchain = find_cpp_toolchain(ctx)
    features = cc_common.configure_features(
        ctx = ctx,
        cc_toolchain = toolchain,
        requested_features = ctx.features,
        unsupported_features = ctx.disabled_features,
    )
    headers = cc_common.merge_cc_infos(
        cc_infos = [dep[CcInfo] for dep in ctx.attr.deps],
    ).compilation_context
    flags = cc_common.get_memory_inefficient_command_line(
        feature_configuration = features,
        action_name = CPP_COMPILE_ACTION_NAME,
        variables = cc_common.create_compile_variables(
            feature_configuration = features,
            cc_toolchain = toolchain,
            user_compile_flags = ctx.fragments.cpp.copts + ctx.fragments.cpp.cxxopts,
            include_directories = headers.includes,
            quote_include_directories = headers.quote_includes,
            system_include_directories = headers.system_includes,
            preprocessor_defines = headers.defines,
            use_pic = True,
        ),
    )
    output = ctx.actions.declare_file(ctx.label.name + ".pch")
    ctx.actions.run_shell(
        mnemonic = "CppPrecompile",
        inputs = depset([ctx.file.header] + ctx.files.includes, transitive = [headers.headers, toolchain.all_files]),
        outputs = [output],
        # Paths below the working directory, which is another one in each
        # sandbox, are kept relative to it.
        command = "exec \"$@\" -Xclang -relocatable-pch -Xclang -isysroot -Xclang \"$PWD\"",
        arguments = [
            cc_common.get_tool_for_action(
                feature_configuration = features,
                action_name = CPP_COMPILE_ACTION_NAME,
            ),
        ] + flags + [
            "-Xclang",
            "-fno-pch-timestamp",
            "-fpch-instantiate-templates",
            "-fmodules-strict-decluse",
            "-iquote",
            ".",
            "-x",
            "c++-header",
            ctx.file.header.path,
            "-o",
            output.path,
        ],
        use_default_shell_env = True,
    )
    return [
        DefaultInfo(files = depset([output])),
        # To those who depend on it, it is one more header.
        CcInfo(compilation_context = cc_common.merge_cc_infos(cc_infos = [
            CcInfo(compilation_context = headers),
            CcInfo(compilation_context = cc_common.create_compilation_context(
                headers = depset([output, ctx.file.header] + ctx.files.includes),
            )),
        ]).compilation_context),
    ]

precompiled_header = rule(
    implementation = _precompiled_header_impl,
    attrs = {
        "header": attr.label(allow_single_file = [".h"], mandatory = True),
        "includes": attr.label_list(allow_files = [".h"]),
        "deps": attr.label_list(providers = [CcInfo]),
        "_cc_toolchain": attr.label(default = "@bazel_tools//tools/cpp:current_cc_toolchain"),
    },
    fragments = ["cpp"],
    toolchains = ["@bazel_tools//tools/cpp:toolchain_type"],
)
