# Partial-1, a baseline of VPT's and E3VA's tables: only the trunk's last block trains (Swin-B 12,601,632 parameters,
# Swin-L 28,339,632). VPT, on ViT, trains the last norm too: `train_out_norms=True`.
method = dict(type='Partial', blocks=1)
