"""What `serve run ditedge.runtime.serving.on_ray:app engines=... min_replicas=2 max_replicas=2` does, at a port.

python -m tests.runtime.serving.serve_run PORT BUNDLE
"""

from __future__ import annotations

import sys


def main() -> None:
    import ray
    from ray import serve
    from ray.serve._private import api

    from ditedge.runtime.serving.on_ray import Arguments, app

    port, bundle = sys.argv[1:]
    api.HTTP_PROXY_TIMEOUT = 600  # a busy machine takes more than a minute to begin a process
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=True)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(app(Arguments(engines=bundle, min_replicas=2, max_replicas=2)), blocking=True)


if __name__ == "__main__":
    main()
