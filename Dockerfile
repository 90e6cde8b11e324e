# GPU image: trains and serves. Needs the NVIDIA container toolkit on the host.
#   docker build -t steward .
#   docker run --gpus all -v "$PWD/data:/steward/data" -v "$PWD/outputs:/steward/outputs" steward make train-phi4mini
#   docker run --gpus all -p 8080:8080 -e STEWARD_API_KEYS=... -v "$PWD/outputs:/steward/outputs" -v "$PWD/reviews:/steward/reviews" steward make serve-phi4mini HOST=0.0.0.0 BACKEND=vllm
#   docker run --gpus all -p 8000:8000 -v "$PWD/outputs:/steward/outputs" steward vllm serve outputs/phi4mini-merged --max-model-len 4096
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Triton compiles kernels at run time: a compiler and Python's headers stay in the image.
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PY=/opt/venv/bin/python PYTHONDONTWRITEBYTECODE=1 HOME=/steward/.home HF_HOME=/steward/.cache/huggingface

WORKDIR /steward
# Every package with the hash of its file; src/lock_image.py wrote it from requirements-gpu.txt.
COPY requirements-image.lock ./
RUN pip install --no-cache-dir --only-binary=:all: --require-hashes -r requirements-image.lock
COPY . .

# Nobody here is root. What is made lies in these folders, and whoever `docker run --user` names may write there.
RUN mkdir -p .cache .home data demo models/standin outputs reports reviews \
    && chmod a+rwX .cache .home data demo models models/standin outputs reports reviews
USER 1000:1000

EXPOSE 8080 8000
CMD ["make", "help"]
