# yolov5-mobilevit on a CPU. Packages are fetched while the image is built; a container fetches nothing, its user is not root.
#   docker build -t yolov5-mobilevit .
#   docker run --rm -v "$PWD:/data" yolov5-mobilevit detect --weights best.pt --source images
# --build-arg REQUIREMENTS=requirements-export.txt adds what `export` needs.

FROM python:3.11-slim AS build
ARG REQUIREMENTS=requirements.txt
# PyTorch's builds for CPUs; those of PyPI bring CUDA along, which is gigabytes
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY requirements*.txt ./
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -r "$REQUIREMENTS"
COPY . .
RUN pip install --no-cache-dir --no-deps .

FROM python:3.11-slim
COPY --from=build /opt/venv /opt/venv
# Under any --user: Matplotlib's cache goes where everybody may write
ENV PATH=/opt/venv/bin:$PATH \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home detector && install --directory --owner detector /data
USER 1000
WORKDIR /data
ENTRYPOINT ["yolov5-mobilevit"]
CMD ["--help"]
