"""A page to drop songs on: hear the voice and the rest, download both.

    python app.py                    opens http://127.0.0.1:7860
    python app.py --port 8000 --model_path checkpoints/best.pt

Songs stay on this computer, and only until their tab is closed. Its libraries: pip install -r requirements-app.txt
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from diffvocsep.util.cli import Parser, main
from diffvocsep.util.errors import UserError
from diffvocsep.util.released import released_weights


def run(argv: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this computer's own)")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes one that is free")
    parser.add_argument("--model_path", type=Path, help="checkpoint (default: the released weights)")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | mps (default: auto)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page, only serve it")
    args = parser.parse_args(argv)
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UserError(f"the page needs {' and '.join(missing)}; install with: pip install -r requirements-app.txt")
    model = args.model_path or released_weights()
    from diffvocsep.page.launch import serve

    return serve(model, args.host, args.port, args.device, browser=not args.no_browser)


if __name__ == "__main__":
    main(run)
