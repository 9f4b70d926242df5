# An image with the command stylegan-di, by the steps of README.md.
#
#   docker build -t stylegan-di .                                 for CPUs
#   docker build -t stylegan-di --build-arg DEVICE=cuda .         for NVIDIA's GPUs
#   docker run --rm -v "$PWD:/work" stylegan-di generate --network=fashion-gan.pkl --seeds=0-63 --grid=out/grid.png
#   docker run --rm --gpus=all -v "$PWD:/work" stylegan-di train --kind=di --gan-pkl=my-gan.pkl --teacher=my-edm.pkl
#
# Files of /work, the folder of -v, are read and written under their names in it.

ARG DEVICE=cpu
ARG CUDA=13.0.1

# With compilers for the native kernels: g++, and for CUDA nvcc.
FROM python:3.12-bookworm AS cpu

FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-dev python3-venv && \
    rm -rf /var/lib/apt/lists/*

FROM ${DEVICE}
ARG DEVICE
ARG TORCH=torch==2.13.0
ARG EXTRAS=diffusers,peft,hub,onnx,video,plot
WORKDIR /opt/stylegan-di
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 DNNLIB_CACHE_DIR=/cache
RUN pip install ${TORCH}
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY dnnlib dnnlib
COPY torch_utils torch_utils
COPY stylegan_di stylegan_di
RUN pip install ".[${EXTRAS}]" && mkdir -m 1777 /cache && stylegan-di --version
WORKDIR /work
ENTRYPOINT ["stylegan-di"]
CMD ["--help"]
