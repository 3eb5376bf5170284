# deploycompress on a Jetson Orin or Thor with JetPack 7.2, where it builds and measures engines on the board itself:
#   docker build -f docker/jetson.Dockerfile -t deploycompress:jetson .     (on the board)
#   docker run --rm --init --runtime nvidia --gpus all --user "$(id -u):$(id -g)" --group-add video \
#     -v "$PWD:/work" \
#     -v deploycompress:/var/cache/deploycompress deploycompress:jetson run pipeline.yaml
# The volume keeps finished steps and checkpoints for the next run. Extras: --build-arg EXTRAS=vision,openvino.
# The base is NVIDIA's container for 64-bit ARM servers, which JetPack 7 runs as well; an l4t-jetpack image for it
# does not exist. JetPack 6 cannot be served: its Python is 3.10 and its TensorRT 10.3, and this project wants 3.11
# and 10.12. A board that only measures needs none of this: what travels to a device is one file that wants
# Python 3.8, numpy and onnxruntime or tensorrt.
# The board's GPU belongs to a group, video as a rule; `stat -c %g /dev/nvmap` on the board tells its number.
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
    && useradd --create-home --uid 10001 --groups video deploycompress \
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
