"""/metrics, /livez and /readyz over HTTP or HTTPS.

Two processes. The front (:mod:`~streamer.endpoints.front`) holds the port and whoever connects to it, within limits.
The service (:mod:`~streamer.endpoints.serving`) is asked by the front for each answer, one at a time.
"""
