"""Real exports of one small LLaMA, built from graphs/, and a way to run them."""
