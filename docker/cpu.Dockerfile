# deploycompress for CPUs, on x86-64 and 64-bit ARM. Of what is given to it, only these two are written to:
#   docker build -f docker/cpu.Dockerfile -t deploycompress .
#   docker run --rm --init --user "$(id -u):$(id -g)" -v "$PWD:/work" -v deploycompress:/var/cache/deploycompress \
#     deploycompress run pipeline.yaml
# The volume keeps finished steps and checkpoints for the next run. Extras: --build-arg EXTRAS=vision,openvino. For
# devices add -v /etc/passwd:/etc/passwd:ro -v "$HOME/.ssh:$HOME/.ssh:ro": OpenSSH wants to know who it works for.
# On x86-64 the registry's PyTorch brings CUDA's libraries with it, several gigabytes. An index that has PyTorch
# for CPUs, given as --build-arg PIP_EXTRA_INDEX_URL=..., leaves them out; constraints.txt fits that one too.
FROM python:3.11.14-slim-bookworm

ARG PIP_EXTRA_INDEX_URL
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# Any user may write here: docker run --user gives the files the owner that the host wants.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 deploycompress \
    && install --directory --mode 1777 /work /var/cache/deploycompress

# The libraries stay in a layer of their own when the code changes; an empty package holds its place.
WORKDIR /opt/deploycompress
COPY pyproject.toml constraints.txt README.md ./
RUN mkdir deploycompress && touch deploycompress/__init__.py \
    && python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ".${EXTRAS:+[$EXTRAS]}"
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
