# docker build -f docker/cuda.Dockerfile -t transfiner-refine:cuda .
# docker run --rm --gpus all -u $(id -u):$(id -g) -v "$PWD:/data" transfiner-refine:cuda refine photos masks.json -o refined.json
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

# PyTorch from the package registry brings CUDA's libraries; only the driver is the host's
FROM python:3.12-slim
COPY requirements/slim.txt /tmp/slim.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -r /tmp/slim.txt torch torchvision && pip install --no-cache-dir --no-deps /wheels/*.whl \
    && rm -r /wheels && useradd --create-home refiner
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER refiner
WORKDIR /data
ENTRYPOINT ["transfiner-refine"]
CMD ["--help"]
