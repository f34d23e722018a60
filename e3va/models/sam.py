"""SAM (Kirillov et al., ICCV 2023, arXiv 2304.02643) as a segmenter of mmsegmentation: no prompts, one mask, as in GPS.

Encoder: mmpretrain's `ViTSAM`, tuned by any method. Prompt encoder and mask decoder: those of the authors' package,
segment-anything. A public checkpoint (sam_vit_b_01ec64.pth) loads as it is, by `init_cfg` or `load_from`.
"""
import torch
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS as MMSEG_MODELS
from torch.nn import functional as F

from ..loading import shorten
from ..registry import MODELS
from ..trunks.vit_sam import own_names

IGNORED = 255                                                           # pixels of no class, e.g. padding


@MODELS.register_module()
class SAMSegmentor(BaseSegmentor):
    """Image encoder, then SAM's mask decoder without prompts: one logit a pixel, polyp (or any object) or not.

    The loss is that of GPS's code: binary cross-entropy + 1 - soft IoU. The decoder trains whole, the prompt encoder
    (the position code and the embedding of 'no mask') is frozen. The decoder's head for the quality of its masks is
    asked for nothing: it is counted among what trains, as in the paper, and its gradient is zero.

    In a config: `type='e3va.SAMSegmentor'`, with `custom_imports = dict(imports=['e3va.models.sam'])`.

    Args:
        backbone (dict): a `mmpretrain.ViTSAM` with one output, stock or tuned; images have its `img_size`.
        data_preprocessor, init_cfg (dict): see mmseg's `BaseSegmentor`.
    """

    align_corners = False

    def __init__(self, backbone, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MMSEG_MODELS.build(backbone)
        if not hasattr(self.backbone, 'channel_reduction') or len(self.backbone.out_indices) != 1:
            raise ValueError('SAMSegmentor needs a ViTSAM with its neck (out_channels=256) and one output, not the '
                             f'{type(self.backbone).__name__} of {dict(backbone)}')
        self.img_size = tuple(self.backbone.img_size)
        self.prompt_encoder, self.mask_decoder = prompts_and_masks(
            self.backbone.out_channels, self.backbone.patch_resolution, self.img_size)
        self.prompt_encoder.requires_grad_(False)

    def extract_feat(self, inputs):
        """The encoder's map, (B, C, h, w)."""
        return self.backbone(inputs)[0]

    def encode_decode(self, inputs, data_samples=None):
        """Logits (B, 1, H, W) of images (B, 3, H, W)."""
        if tuple(inputs.shape[-2:]) != self.img_size:
            raise ValueError(f'SAM was given images of {tuple(inputs.shape[-2:])} px, and its position code is for '
                             f'{self.img_size}: resize or pad in the pipeline, or set model.backbone.img_size')
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        found = [self.mask_decoder(                                     # it takes several prompts, not several images
            image_embeddings=each[None], image_pe=self.prompt_encoder.get_dense_pe(), sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense, multimask_output=False) for each in self.extract_feat(inputs)]
        masks, quality = map(torch.cat, zip(*found))
        masks = masks + 0 * quality[..., None, None]                    # DDP wants a gradient, of zero, for its head
        return F.interpolate(masks, inputs.shape[-2:], mode='bilinear', align_corners=False)

    def loss(self, inputs, data_samples):
        target = torch.stack([sample.gt_sem_seg.data for sample in data_samples])
        return mask_losses(self.encode_decode(inputs), target)

    def predict(self, inputs, data_samples=None):
        """Data samples with `pred_sem_seg`, 0 or 1, in the size of the original images."""
        logits = self.encode_decode(inputs)
        return self.postprocess_result(torch.cat([torch.zeros_like(logits), logits], dim=1), data_samples)

    def _forward(self, inputs, data_samples=None):
        return self.encode_decode(inputs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take a public checkpoint's names; ValueError where it would leave what is not tuned at random values."""
        renamed = own_names(state_dict)
        state_dict.clear()
        state_dict.update(renamed)
        missing = [name for name in self.state_dict() if name.startswith(('prompt_encoder.', 'mask_decoder.'))
                   and prefix + name not in state_dict]
        if missing:
            raise ValueError(f"the checkpoint leaves SAM's prompt encoder and mask decoder at random values: it has no "
                             f'{shorten(missing, 3)}. Give a whole SAM, e.g. sam_vit_b_01ec64.pth')
        super()._load_from_state_dict(state_dict, prefix, *args)


def prompts_and_masks(width, grid, size):
    """The authors' prompt encoder and mask decoder, as in all of their models.

    Args:
        width (int): channels of the encoder's map, 256.
        grid, size (tuple): height and width of the map and of the images.
    """
    try:
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
    except ImportError as error:
        raise ValueError("SAMSegmentor takes SAM's prompt encoder and mask decoder from the package segment-anything, "
                         f'which cannot be imported ({error}): pip install segment-anything') from error
    prompts = PromptEncoder(embed_dim=width, image_embedding_size=tuple(grid), input_image_size=tuple(size),
                            mask_in_chans=16)
    masks = MaskDecoder(
        num_multimask_outputs=3, transformer_dim=width, iou_head_depth=3, iou_head_hidden_dim=256,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=2048, num_heads=8))
    return prompts, masks


def mask_losses(logits, target):
    """Binary cross-entropy over the pixels, and 1 - soft IoU, the mean over images.

        IoU = sum p t / sum (p + t - p t),  p = sigmoid(logits)

    Args:
        logits (Tensor): (B, 1, H, W).
        target (Tensor): t, (B, 1, H, W) of 0, 1 and, for pixels that do not count, 255.
    """
    counts, truth = target != IGNORED, (target == 1).to(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction='none')[counts].mean()
    share, truth = logits.sigmoid() * counts, truth * counts
    both = (share * truth).flatten(1).sum(1)
    either = (share + truth).flatten(1).sum(1) - both
    return dict(loss_bce=entropy, loss_iou=(1 - both / either).mean())
