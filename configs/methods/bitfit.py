# BitFit (Ben Zaken et al., ACL 2022, arXiv:2106.10199): only the trunk's biases train, Swin's relative position bias
# tables among them: Swin-B 201,656 parameters, Swin-L 302,484 (E3VA's tables), ViT-B 102,912.
method = dict(type='BitFit')
