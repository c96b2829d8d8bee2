"""Engines that a CPU user would pick: llama.cpp and OpenVINO GenAI, each in an environment of its own."""
