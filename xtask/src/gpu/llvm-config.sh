#!/bin/sh
# Stands for Debian's llvm-config, whose answers name places that are not here; written by `cargo xtask gpu build`.
prefix=@PREFIX@
for argument; do
    case $argument in
    --link-static | --link-shared | --ignore-libllvm) ;;
    --version) echo @VERSION@ ;;
    --prefix) echo "$prefix" ;;
    --libdir) echo "$prefix/lib" ;;
    --includedir) echo "$prefix/include" ;;
    --cflags) echo "-I$prefix/include -D_GNU_SOURCE -D__STDC_CONSTANT_MACROS -D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS" ;;
    --cxxflags) echo "-I$prefix/include -std=c++17 -fno-exceptions -D_GNU_SOURCE -D_GLIBCXX_USE_CXX11_ABI=1 -D__STDC_CONSTANT_MACROS -D__STDC_FORMAT_MACROS -D__STDC_LIMIT_MACROS" ;;
    --libs | --libnames) echo "@LIBRARIES@" ;;
    --system-libs) echo "-lrt -ldl -lm -lpthread -lz -lzstd" ;;
    --host-target) echo "$(uname -m)-linux-gnu" ;;
    --build-mode) echo Release ;;
    --shared-mode) echo static ;;
    --assertion-mode) echo OFF ;;
    *) echo "this llvm-config does not know $argument" >&2; exit 1 ;;
    esac
done
