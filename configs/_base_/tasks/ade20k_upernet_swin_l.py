# python tools/train.py configs/_base_/tasks/ade20k_upernet_swin_l.py --method e3va    (or full, fixed, lora, a file)
#
# The task: semantic segmentation on ADE20K, UPerNet with Swin-L, 160,000 iterations at 512x512. Names no method.
# Expect: not measured by us. Paper (E3VA, Table 1): 52.10 mIoU with the whole trunk tuned, 46.84 with the trunk fixed.
# Source: mmseg's own config, unchanged: IN-22K at 224, window 7 (the paper's parameter counts are those of window 7),
# AdamW 6e-5, weight decay 0.01, poly, DropPath 0.3; the checkpoint is mmseg's conversion of Swin's release.
# Data: data/ade/ADEChallengeData2016.
_base_ = 'mmseg::swin/swin-large-patch4-window7-in22k-pre_upernet_8xb2-160k_ade20k-512x512.py'

# ---- what one edits
batch_size = 2            # images per GPU, as in the E3VA paper (section 4.2)
learning_rate = 6e-5      # for 8 GPUs x 2 images; `--auto-scale-lr` adapts it to another number

# ---- for tools/sweep.py; there is no split to choose on
sweep = dict(
    score='mIoU', rates=[learning_rate], weight_decays=[0.01],
    data='the first lines of the file say what belongs there')

# ---- the schedule
train_dataloader = dict(batch_size=batch_size)
optim_wrapper = dict(optimizer=dict(lr=learning_rate))
auto_scale_lr = dict(enable=False, base_batch_size=16)
