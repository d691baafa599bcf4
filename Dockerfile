# graphpass in a container of its own, without rights: docker run -v "$PWD:/models" graphpass …
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /opt/graphpass && /opt/graphpass/bin/pip install --no-cache-dir '/source[image]'

FROM python:3.12-slim
COPY --from=build /opt/graphpass /opt/graphpass
RUN useradd --create-home --uid 1000 graphpass
USER graphpass
WORKDIR /models
ENTRYPOINT ["/opt/graphpass/bin/graphpass"]
CMD ["--help"]
