"""A bundle as an OCI image and as what runs it on Kubernetes. Imports no torch."""
