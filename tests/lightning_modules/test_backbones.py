"""timm's layouts, its weights files, slice stacks, and MONAI's stems."""

import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

from lightning_modules.networks import ModelError, Monai3D, Timm2D, TimmSlices
from lightning_modules.networks.backbones import GatedAttention


def test_transformer_tokens_become_a_map_in_image_order():
    network = Timm2D("test_vit", options={"img_size": (32, 64)}).eval()
    image = torch.randn(1, 1, 32, 64)
    with torch.no_grad():
        features = network.forward_features(image)
        tokens = network.backbone.forward_features(image)
    assert features.shape == (1, 64, 2, 4)
    torch.testing.assert_close(features[0, :, 1, 2], tokens[0, 1 + 1 * 4 + 2])


def test_channels_last_maps_are_turned():
    sizes = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "img_size": (32, 64)}
    network = Timm2D("swin_tiny_patch4_window7_224", options=sizes)
    assert network.num_features == 16
    assert network.forward_features(torch.zeros(1, 1, 32, 64)).shape == (1, 16, 4, 8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_stack_reads_each_slice_along_its_axis(axis):
    torch.manual_seed(0)
    network = TimmSlices("test_resnet", axis=axis).eval()
    sizes = [34, 66, 98]
    sizes[axis] = 3
    volume = torch.randn(2, 1, *sizes)
    with torch.no_grad():
        features = network.forward_features(volume)
        slices = [network.backbone.forward_features(volume.select(2 + axis, index)) for index in range(3)]
        torch.testing.assert_close(features, torch.stack(slices, dim=2 + axis), rtol=1e-4, atol=1e-5)
        vectors = torch.stack([one.mean(dim=(2, 3)) for one in slices], dim=1)
        torch.testing.assert_close(network.encode(volume), network.attention(vectors), rtol=1e-4, atol=1e-5)


def test_attention_weighs_vectors_in_any_order():
    torch.manual_seed(0)
    attention = GatedAttention(4, size=8)
    vectors = torch.randn(2, 5, 4)
    weights = attention.weights(vectors)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
    assert weights.std() > 0
    torch.testing.assert_close(attention(vectors), attention(vectors.flip(1)))
    torch.testing.assert_close(attention(vectors)[0], (weights[0, :, None] * vectors[0]).sum(dim=0))


def test_weights_file_loads_and_colour_channels_are_summed(tmp_path):
    source = timm.create_model("test_resnet", num_classes=7)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    network = Timm2D("test_resnet", in_channels=1, weights=str(tmp_path / "weights.safetensors"))
    stem, reference = network.backbone.conv1[0], source.conv1[0]
    torch.testing.assert_close(stem.weight, reference.weight.sum(dim=1, keepdim=True))
    for name, value in network.backbone.layer4.state_dict().items():
        torch.testing.assert_close(value, source.layer4.state_dict()[name])
    assert "state_dict" not in network.backbone.pretrained_cfg


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"lacks .* tensors of timm's 'test_resnet'"):
        Timm2D("test_resnet", weights=str(path))


def test_pickled_code_in_a_weights_file_never_runs(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelError, match="cannot be read as weights"):
        Timm2D("test_resnet", weights=str(path))
    assert not (tmp_path / "ran").exists()


def test_unknown_names_and_missing_files_say_what_to_do():
    with pytest.raises(ModelError, match=r"no network called 'resnet_eighteen'"):
        Timm2D("resnet_eighteen")
    with pytest.raises(ModelError, match=r"local \.safetensors"):
        Timm2D("test_resnet", weights="https://example.org/weights.pth")
    with pytest.raises(ModelError, match="could not build 'test_resnet' with the given options"):
        Timm2D("test_resnet", options={"no_such_option": 1})


def test_stem_stride_of_monai_resnet():
    fast, slow = Monai3D("resnet10").eval(), Monai3D("resnet10", stem_stride=1).eval()
    slow.load_state_dict(fast.state_dict())
    image = torch.zeros(1, 1, 33, 32, 16)
    with torch.no_grad():
        assert fast.forward_features(image).shape[2:] == (2, 1, 1)
        assert slow.forward_features(image).shape[2:] == (3, 2, 1)
