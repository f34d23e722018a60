"""Print the config that a run would use, with all that it inherits.

    python tools/misc/print_config.py mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py --method e3va
"""
from e3va.command.config import prepare
from e3va.command.line import config_parser, one_line_errors, read_config


def main(argv=None):
    args = config_parser(__doc__).parse_args(argv)
    with one_line_errors():
        print(prepare(read_config(args)).pretty_text)


if __name__ == '__main__':
    main()
