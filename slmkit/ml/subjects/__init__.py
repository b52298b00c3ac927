"""What is evaluated, one file for each runtime: transformers, llama.cpp and onnxruntime, an endpoint; each as lm-eval's kind of model."""
