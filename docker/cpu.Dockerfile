# docker build -f docker/cpu.Dockerfile -t transfiner-refine .
# docker run --rm -u $(id -u):$(id -g) -v "$PWD:/data" transfiner-refine refine photo.jpg mask.png -o refined.png
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps -w /wheels .

FROM python:3.12-slim
COPY requirements/slim.txt /tmp/slim.txt
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir -r /tmp/slim.txt && pip install --no-cache-dir --no-deps /wheels/*.whl && rm -r /wheels \
    && useradd --create-home refiner
USER refiner
WORKDIR /data
ENTRYPOINT ["transfiner-refine"]
CMD ["--help"]
