# deploycompress with TensorRT 10.16 and CUDA 13.2, for NVIDIA's GPUs in servers and workstations:
#   docker build -f docker/tensorrt.Dockerfile -t deploycompress:tensorrt .
#   docker run --rm --init --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" \
#     -v deploycompress:/var/cache/deploycompress deploycompress:tensorrt run pipeline.yaml
# The volume keeps finished steps and checkpoints for the next run. Extras: --build-arg EXTRAS=vision,openvino.
# The base has TensorRT and its Python bindings for Ubuntu's Python 3.12, so the extra `tensorrt` is not installed;
# the environment sees the base's packages, and takes its own where constraints.txt wants another version.
# It needs a driver for CUDA 13 (580 or later). An engine runs with this TensorRT on the GPU it was built on.
FROM nvcr.io/nvidia/tensorrt:26.05-py3

ARG EXTRAS=""

# The base may pin versions of its own by PIP_CONSTRAINT; empty, it counts as not given.
ENV PIP_CONSTRAINT="" \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 deploycompress \
    && install --directory --mode 1777 /work /var/cache/deploycompress

# The libraries stay in a layer of their own when the code changes; an empty package holds its place.
WORKDIR /opt/deploycompress
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir deploycompress && touch deploycompress/__init__.py \
    && python3 -m venv --system-site-packages .venv && .venv/bin/pip install -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}" \
    && .venv/bin/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('tensorrt') is None)"
COPY deploycompress deploycompress
COPY pipelines pipelines

# USER stands in for the name that a user from outside does not have in here; PyTorch asks for it.
ENV PATH=/opt/deploycompress/.venv/bin:$PATH \
    DEPLOYCOMPRESS_STORE=/var/cache/deploycompress \
    USER=deploycompress
USER 10001
WORKDIR /work
ENTRYPOINT ["deploycompress"]
CMD ["--help"]
