# Tree crowns in four aerial images, the task of the demo.
#
# python tools/demo/run.py                                                 three methods, a table, a picture, a page
# python tools/sweep.py configs/demo/trees.py --methods fixed,lora         after `python tools/demo/prepare.py`
# python tools/train.py configs/demo/trees.py --method lora                one run
_base_ = 'atss_vit-s.py'
