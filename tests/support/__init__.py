"""What tests build on: real servers, outages on demand, waiting."""
