#!/usr/bin/env bash
# Builds the GPU worker on a machine without a CUDA toolkit or a GPU: the toolkit comes from PyPI, and the
# driver's library, which only a machine with a GPU has, is stood in for while linking. docs/gpu.md.
#
#   deploy/cuda/build.sh FOLDER [cargo's options]     FOLDER keeps the toolkit (2.4 GB) and what is built
#
# CUDA_COMPUTE_CAP says for which GPUs: 80 A100, 86 RTX 30, 89 RTX 40 and L4, 90 H100 [default: 90].
set -euo pipefail
folder=${1:?give the folder that the toolkit and what is built go to}
shift
mkdir -p "$folder"
folder=$(realpath "$folder")
cd "$(dirname "$0")/../.."
cuda=$folder/wheels/nvidia/cu13

# 1. The toolkit. PyPI has nvcc itself only for CUDA 13.
if [[ ! -x $cuda/bin/nvcc ]]; then
    python3 -m pip install --quiet --no-deps --target "$folder/wheels" \
        nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 \
        nvidia-cublas==13.0.2.14 nvidia-curand==10.4.5.25 nvidia-cudnn-cu13==9.27.0.42
    chmod +x "$cuda"/bin/* "$cuda"/nvvm/bin/*
fi

# 2. The names that a linker looks for: wheels have only those with a version.
cd "$cuda/lib"
for library in *.so.*; do ln -sf "$library" "${library%%.so.*}.so"; done
for library in ../../cudnn/lib/libcudnn.so.*; do
    ln -sf "$library" .
    ln -sf "$library" libcudnn.so
done
cd - >/dev/null
[[ -e $cuda/lib64 ]] || ln -s lib "$cuda/lib64"

# 3. The driver: every function that cudarc names, each answering that there is no device.
cargo fetch --locked --quiet
cudarc=$(cargo metadata --format-version 1 --locked --filter-platform x86_64-unknown-linux-gnu --features worker/cuda |
    python3 -c 'import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "cudarc"))')
mkdir -p "$folder/driver"
grep -hoE 'fn cu[A-Z][A-Za-z0-9_]*' "$cudarc/src/driver/sys/mod.rs" | sort -u |
    sed -E 's/fn (.*)/int \1(void) { return 100; }/' >"$folder/driver/cuda.c"
cc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$folder/driver/libcuda.so" "$folder/driver/cuda.c"

# 4. The worker.
PATH="$cuda/bin:$PATH" CUDA_HOME=$cuda CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} \
    LIBRARY_PATH="$cuda/lib:$folder/driver${LIBRARY_PATH:+:$LIBRARY_PATH}" CARGO_TARGET_DIR=$folder/target \
    cargo build --release --locked --package worker --features cuda "$@"
printf '%s\n' "built: $folder/target/release/worker" \
    "It needs an NVIDIA driver for CUDA 13 (580 or later), and on its library path: $cuda/lib"
