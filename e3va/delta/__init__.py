"""What training changed: taken out, saved, loaded, merged, exchanged with HF PEFT; its hook and `e3va://`."""
