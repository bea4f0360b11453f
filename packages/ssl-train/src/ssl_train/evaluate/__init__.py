"""How good are features: k-NN, linear probe, few-shot and signs of collapse, all over `encode`."""
