"""A config's model and data made small enough for one step on the CPU; all else stays what it is."""
from e3va.command.config import nodes, prepare

WIDTHS, HEADS, NECK = [16, 32, 64, 128], [1, 2, 4, 8], 32
READERS = ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels', 'fc_out_channels', 'channels',
           'embed_dim', 'embed_dims', 'feedforward_channels')
SMALLER = 4             # images have a quarter of their sides, in px


def reduce_model(model):
    """The same model with a thin trunk and neck; what reads the trunk follows."""
    backbone = model.backbone
    kind = backbone.get('trunk', backbone.type)
    backbone.pop('init_cfg', None)
    if 'rank' in backbone.get('method', {}):
        backbone.method.rank //= 4                              # it has to fit into half the width
    if kind == 'e3va.TimmTrunk' and 'convnext' in backbone.name:
        backbone.update(pretrained=False, depths=[1, 1, 1, 1], dims=WIDTHS)
        widths = {i: WIDTHS[i] for i in backbone.out_indices}
    elif kind == 'e3va.TimmTrunk':
        backbone.update(pretrained=False, embed_dim=NECK, num_heads=1)
        widths = dict.fromkeys(backbone.out_indices, NECK)
    elif kind == 'VisionTransformer':
        backbone.arch = dict(embed_dims=NECK, num_layers=2, num_heads=2, feedforward_channels=2 * NECK)
        widths = {1: NECK}
    elif kind == 'mmpretrain.ViTSAM':
        backbone.update(arch=dict(embed_dims=NECK, num_layers=2, num_heads=2, feedforward_channels=2 * NECK,
                                  global_attn_indexes=[1]),
                        img_size=shrink(backbone.img_size), out_channels=NECK)
        widths = {1: NECK}
    elif kind == 'ConvNeXt':
        backbone.arch = dict(depths=[1, 1, 1, 1], channels=WIDTHS)
        widths = {3: WIDTHS[3]}
    else:
        thin = dict(embed_dims=WIDTHS[0], depths=[2, 2, 2, 2], num_heads=HEADS)
        backbone.update(dict(arch=thin) if 'arch' in backbone else thin)
        widths = {i: WIDTHS[i] for i in backbone.get('out_indices', [3])}
    follow(model, widths)
    if model.type == 'DINO':
        model.bbox_head.embed_dims, model.num_queries, model.dn_cfg.group_cfg.num_dn_queries = NECK, 20, 10
    if model.type == 'ImageClassifier':
        model.head.in_channels = widths[max(widths)]
    for node in nodes([model.get('train_cfg'), model.get('test_cfg')]):
        node.update({key: value for key, value in dict(nms_pre=50, max_per_img=10, num=16, score_thr=0.).items()
                     if key in node})


def follow(model, widths):
    """Thin what reads the trunk, in place.

    Args:
        widths (dict): {index of a map that the trunk gives out: its channels}.
    """
    for node in nodes({key: value for key, value in model.items() if key not in ('backbone', 'data_preprocessor')}):
        for key in set(READERS) & set(node):
            if isinstance(node[key], int):
                node[key] = NECK
            else:
                found = [widths[i] for i in sorted(widths)]
                node[key] = found if len(node[key]) == len(widths) else [NECK] * len(node[key])
        if 'num_feats' in node:                                 # DETR's: a half for each axis of a position
            node['num_feats'] = NECK // 2
        if 'num_queries' in node:
            node['num_queries'] = 20
        if 'in_index' in node and isinstance(node.in_index, int):
            node.in_channels = widths[sorted(widths)[node.in_index]]


def reduce(cfg):
    """A config for one step on the CPU; schedule, hooks, losses and pipelines stay what they are."""
    reduce_model(cfg.model)
    loaders = [cfg.train_dataloader, cfg.val_dataloader]
    # a classifier's last window needs the full size, and the bench's images are small
    if cfg.default_scope != 'mmpretrain' and '/bench/' not in str(cfg.filename):
        for node in nodes([*loaders, cfg.model.data_preprocessor]):
            for key in {'scale', 'scales', 'crop_size', 'size'} & set(node):
                node[key] = shrink(node[key])
    for node in nodes([*loaders, cfg.val_evaluator]):
        if node.get('type') == 'CIFAR100':
            node.type = 'e3va.datasets.cifar.SyntheticCIFAR100'
        split = 'val' if node.get('test_mode') else 'train'
        if node.get('type') == 'CocoDataset' and node.get('data_root') in (None, 'data/nuclei/'):   # any boxes will do
            node.update(ann_file=f'data/coco/annotations/instances_{split}2017.json', metainfo=dict(classes=['person']),
                        data_prefix=dict(img=f'data/coco/{split}2017/'), data_root=None, indices=None)
        if node.get('type') == 'XMLDataset':                    # and any of three classes
            node.update(data_root='data/VOCdevkit/VOC2007/', metainfo=dict(classes=['person', 'car', 'dog']),
                        ann_file=f'ImageSets/Main/{dict(train="trainval", val="test")[split]}.txt', filter_cfg=None,
                        indices=None)
        if node.get('type') == 'BaseSegDataset':
            part = 'validation' if 'indices' in node and node.indices[1] == 5 else 'training'
            node.update(
                data_root='data/ade/ADEChallengeData2016', type='ADE20KDataset', metainfo=None, indices=None,
                data_prefix=dict(img_path=f'images/{part}', seg_map_path=f'annotations/{part}'))
            cfg.model.decode_head.num_classes = 150
        if node.get('type') == 'CustomDataset':                 # the demo's crops: any classes will do
            node.update(data_root='data/imagenet', data_prefix='train', ann_file='', metainfo=None)
            for part in (cfg.model.head, cfg.data_preprocessor, cfg.val_evaluator):
                part.update({key: 1000 for key in part if key == 'num_classes'})
        if node.get('type') == 'CocoMetric' and node.get('ann_file') and not node.ann_file.startswith('data/'):
            node.ann_file = 'data/coco/annotations/instances_val2017.json'
    for loader in loaders:
        loader.update(num_workers=0, batch_size=2)
    if 'drop_path_rate' in cfg.model.backbone and 'gps' in cfg.default_hooks:
        cfg.model.backbone.drop_path_rate = 0.                  # else a layer may have no gradient in so few batches
    cfg.train_cfg.val_interval = 1
    cfg.visualizer.vis_backends = []
    cfg.work_dir, cfg.log_level, cfg.load_from = 'work_dirs', 'ERROR', None
    return prepare(cfg)


def shrink(size):
    return max(1, size // SMALLER) if isinstance(size, int) else type(size)(map(shrink, size))
