# Nuclei in microscope images by a linear head: each patch's features say nucleus or background, and nothing else does.
#
# python tools/sweep.py configs/bench/nuclei_linear.py --methods fixed,lora    the whole protocol, see README.md here
# python tools/train.py configs/bench/nuclei_linear.py --method lora           one run
#
# The linear segmentation of Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, TMLR 2024
# (arXiv:2304.07193, sec. 7.4), on its last layer; what a decoder would make up for must be in the trunk.
_base_ = '../demo/nuclei.py'

# ---- the task
sweep = dict(rates=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
             rates_of=dict(                                             # where these end too early for a method
                 fixed=[3e-3, 1e-2, 3e-2, 1e-1, 3e-1],
                 e3va=[1e-3, 3e-3, 1e-2, 3e-2, 1e-1],
                 full=[3e-5, 1e-4, 3e-4, 1e-3, 3e-3]))

# ---- the segmenter
model = dict(
    backbone=dict(out_indices=(11, )),
    neck=None,
    decode_head=dict(
        _delete_=True, type='FCNHead', num_convs=0, concat_input=False, in_channels=384, channels=384, in_index=0,
        dropout_ratio=0., num_classes=2, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
