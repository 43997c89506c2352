"""How candidates are proposed, judged and recorded. Knows no Ray, no Hydra and no terminal."""
