"""How clients are configured, what they report as errors, and what a broker refuses them."""
