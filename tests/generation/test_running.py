"""A generation is followed as it is: what is new is seen once, and nothing of it changes."""

import generation_cases as cases
import pytest
import tiny
import torch
from both_hosts import host_on, new_host, on_both

from sa_plugin.generation import following, require_local
from sa_plugin.host import Site

SITES = cases.SITES


def once(host, ids, mask):
    """The same sites of the finished ids, read in one pass."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    parts = {site: (site.layer, site.point) for site in SITES}
    found = host.passes.read(host.passes.inputs(inputs), list(parts.values()))
    return {site: found[part] for site, part in parts.items()}


@on_both(*cases.DECODERS)
def test_what_is_seen_is_what_one_pass_over_the_finished_ids_reads(library, name):
    host = host_on(library, name)
    ids, mask = cases.prompts(name)
    with torch.no_grad():
        for way, run in cases.ways(host).items():
            for cache in (True, False):
                torch.manual_seed(1)
                plain = run(ids, mask, cache=cache, sample=True)
                torch.manual_seed(1)
                seen, out = cases.recorded(host, lambda r=run, c=cache: r(ids, mask, cache=c, sample=True))
                assert torch.equal(plain, out), (way, cache)
                assert torch.equal(seen.generation.ids, out)
                # The token chosen last is never run.
                run_of = out[:, :-1]
                whole = torch.cat([mask, torch.ones(len(mask), cases.NEW - 1, dtype=mask.dtype)], 1)
                once_read = once(host, run_of, whole)
                for site in SITES:
                    got = seen.seen(site)
                    assert got.shape[:2] == run_of.shape
                    gap = (got - once_read[site]).abs().amax(-1)[whole.bool()].max()
                    assert gap < 1e-4, (way, cache, site, gap)
                steps = [step for step, _, _ in seen.shapes]
                assert steps == list(range(cases.NEW))
                valid = torch.cat(seen.valid, 1)
                special = torch.isin(run_of, torch.tensor([0, 1]))
                assert torch.equal(valid, whole.bool() & ~special)


@on_both("llama")
def test_a_row_is_text_up_to_the_token_that_ends_it(library, name):
    host = host_on(library, name)
    ids, mask = cases.prompts(name)
    width = ids.shape[1]
    for way, run in cases.ways(host).items():
        end = int(run(ids, mask)[0, width + 1])
        for cache in (True, False):
            seen, out = cases.recorded(host, lambda r=run, c=cache, e=end: r(ids, mask, cache=c, eos=e))
            valid, past_the_end = torch.cat(seen.valid, 1), 0
            for row, columns in enumerate(out[:, : valid.shape[1]].tolist()):
                for column, token in enumerate(columns):
                    ended = end in columns[width:column]
                    past_the_end += ended
                    shown = column >= width or bool(mask[row, column])
                    wanted = shown and not ended and token not in (0, 1)
                    assert bool(valid[row, column]) == wanted, (way, cache, row, column)
            assert past_the_end, "no row ended before the others"


@on_both("llama")
def test_an_edit_takes_the_place_of_what_it_sees(library, name):
    host = host_on(library, name)
    ids, mask = cases.prompts(name)
    push = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(3))
    at, behind = Site(1, "resid_post"), Site(2, "resid_pre")

    def edit(site, h, generation):
        return h + generation.valid_here[..., None] * push if site == at else None

    with torch.no_grad():
        for run in cases.ways(host).values():
            outs = []
            for cache in (True, False):
                seen, out = cases.recorded(
                    host, lambda r=run, c=cache: r(ids, mask, cache=c), sites=(at, behind), edit=edit
                )
                valid = torch.cat(seen.valid, 1)[..., None]
                torch.testing.assert_close(seen.seen(behind), seen.seen(at) + valid * push)
                outs.append(out)
            assert torch.equal(*outs)


@on_both("llama")
def test_everything_is_off_behind_the_context(library, name):
    from interrupts import state

    host = new_host(library, name, progress=False)
    ids, mask = cases.prompts(name)
    before, roots = state(host), {id(m): m for m in (host.model, host.places.root)}.values()

    def wrapped():
        return [name for root in roots for name in vars(root) if name.startswith("generate")]

    for error in (ZeroDivisionError, KeyboardInterrupt):

        def fail(site, h, generation, error=error):
            if generation.step == 2:
                raise error("inside")

        for run in cases.ways(host).values():
            with pytest.raises(BaseException, match="inside") as caught:
                cases.recorded(host, lambda r=run: r(ids, mask), edit=fail)
            assert error.__name__ in repr(caught.value) + str(caught.value)
            assert state(host) == before
            assert not wrapped()


@on_both("llama")
def test_what_cannot_be_followed_is_refused_by_name(library, name):
    host = host_on(library, name)
    ids, mask = cases.prompts(name)
    run = cases.ways(host)["hf"]
    for argument, value in {"num_beams": 3, "guidance_scale": 2.0, "prompt_lookup_num_tokens": 2}.items():
        with pytest.raises(ValueError, match=rf"record: generate\({argument}={value}\).*detector\.find"):
            cases.recorded(host, lambda a=argument, v=value: run(ids, mask, **{a: v}))
    with pytest.raises(RuntimeError, match=r"record: nothing was generated inside: call generate"):
        cases.recorded(host, lambda: None)
    recorder = cases.Recorder()
    with (
        pytest.raises(ValueError, match=r"is under record already: leave that context first"),
        following(host, "record", recorder.looks(), recorder),
    ):
        cases.recorded(host, lambda: run(ids, mask))


def test_a_pass_that_ends_before_a_block_that_is_read_is_refused():
    host = new_host("nnsight", "llama", progress=False)
    ids, mask = cases.prompts("llama")
    decoder = host.places.root.model
    decoder.layers = decoder.layers[:2]
    with pytest.raises(
        RuntimeError, match=r"record: (attn_out|resid_post) of block 2 was not run.*Run the whole model"
    ):
        cases.recorded(host, lambda: cases.ways(host)["hf"](ids, mask))


def test_the_bridge_silently_ignores_beams_and_is_refused():
    host = host_on("transformer_lens", "gpt2")
    ids, mask = cases.prompts("gpt2")
    with pytest.raises(ValueError, match=r"generate\(num_beams=3\) cannot be followed"):
        cases.recorded(host, lambda: cases.ways(host)["bridge"](ids, mask, num_beams=3))


def test_models_that_generate_no_text_are_refused():
    with pytest.raises(ValueError, match="watch: BertForMaskedLM attends in both directions"):
        require_local(host_on("transformer_lens", "bert"), "watch")
    with pytest.raises(ValueError, match=r"watch: ViT.*reads images"):
        require_local(host_on("nnsight", "vit"), "watch")
