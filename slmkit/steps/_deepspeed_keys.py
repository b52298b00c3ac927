"""Which keys of a DeepSpeed config, and of accelerate's `deepspeed_config`, are read, say nothing here, or say nothing at some values."""

from __future__ import annotations

AUTO = "auto"
NONE = (None, {}, [], "", AUTO)
OFF = (None, False, AUTO)
DEFAULTS = {
    "batch_size": 16, "max_grad_norm": 1.0, "precision": "auto", "learning_rate": 2e-4, "weight_decay": 0.0, "schedule": "cosine", "method": "qlora",
    "objective": "sft",
}  # fmt: skip
"""What a step says that leaves a key out (the recipe is not validated yet when its file is read)."""
SAYS_IT = "it changes what comes out, so it is the recipe's to say"

BATCH = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
READ = (*BATCH, "zero_optimization", "gradient_clipping", "bf16", "fp16", "optimizer", "scheduler")
QUIET = (
    "steps_per_print", "wall_clock_breakdown", "dump_state", "memory_breakdown", "prescale_gradients", "gradient_predivide_factor",
    "fp32_allreduce", "disable_allgather", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "aio", "checkpoint",
)  # fmt: skip
"""Logging, and how DeepSpeed communicates, loads and saves: nothing of the training, whatever the value."""
ENABLED = (
    "amp", "torch_autocast", "flops_profiler", "comms_logger", "tensorboard", "wandb", "comet", "csv_monitor", "elasticity", "autotuning",
    "curriculum_learning", "data_efficiency", "hybrid_engine", "progressive_layer_drop", "eigenvalue", "quantize_training", "nebula",
)  # fmt: skip
"""Blocks that ask for nothing while they are not `enabled`."""
ASKS: dict[str, tuple] = {
    "sparse_gradients": OFF, "sparse_attention": NONE, "compression_training": NONE, "communication_data_type": (None, AUTO, "fp32"),
    "dataloader_drop_last": OFF, "data_types": (*NONE, *({"grad_accum_dtype": w} for w in (None, AUTO, "fp32"))),
    "tensor_parallel": (*NONE, {"autotp_size": 0}, {"autotp_size": 1}),
}  # fmt: skip
"""Key → the values at which it asks for nothing."""
MENDS = {
    "activation_checkpointing": "write `gradient_checkpointing: true` in execution", "torch_autocast": "write `precision: bf16` in the step",
    "amp": "write `precision: bf16` in the step", "sparse_gradients": "gradients are whole: remove it",
} | dict.fromkeys(("tensorboard", "wandb"), "write `trackers` in execution")  # fmt: skip

ZERO_QUIET = (
    "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce", "allgather_partitions",
    "allgather_bucket_size", "overlap_comm", "load_from_fp32_weights", "sub_group_size", "ignore_unused_parameters", "round_robin_gradients",
    "memory_efficient_linear", "override_module_apply", "pipeline_loading_checkpoint", "elastic_checkpoint", "legacy_stage1",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
    "stage3_module_granularity_threshold", "stage3_use_all_reduce_for_fetch_params", "cpu_offload_use_pin_memory",
)  # fmt: skip
ZERO_ASKS = {
    "zero_hpz_partition_size": (1, AUTO), "zero_quantized_weights": OFF, "zero_quantized_nontrainable_weights": OFF, "zero_quantized_gradients": OFF,
    "zeropp_loco_param": NONE, "mics_shard_size": (-1, AUTO), "mics_hierarchical_params_gather": OFF, "cpu_offload": OFF, "cpu_offload_param": OFF,
}  # fmt: skip
OFFLOAD = ("offload_optimizer", "offload_param")
STAYS = "weights and moments stay on their device: write none"
FP16 = ("auto_cast", "loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "consecutive_hysteresis", "min_loss_scale",
        "fp16_master_weights_and_grads")  # fmt: skip
BF16 = ("immediate_grad_update", "check_grad_overflow")

ADAM = {"betas": (AUTO, [0.9, 0.999]), "eps": (AUTO, 1e-8), "adam_w_mode": (True,), "torch_adam": (True, False)}
WARMUP = {"warmup_min_lr": (AUTO, 0, 0.0), "warmup_num_steps": (AUTO,), "total_num_steps": (AUTO,), "warmup_type": (AUTO, "linear")}
CHOSEN: dict[str, tuple[dict, dict, dict]] = {
    "optimizer": ({"Adam": None, "AdamW": None}, {"lr": "learning_rate", "weight_decay": "weight_decay"}, ADAM),
    "scheduler": ({"WarmupLR": "constant", "WarmupDecayLR": "linear"}, {"warmup_max_lr": "learning_rate"}, WARMUP),
}
"""Block → (its types and the schedule that each is, its params that the recipe says, its other params and what is done of them)."""

ACCELERATE_QUIET = ("zero3_init_flag", "zero3_save_16bit_model", "deepspeed_multinode_launcher", "deepspeed_moe_layer_cls_names")
ACCELERATE_ASKS = {k: (*NONE, "none") for k in (
    "offload_optimizer_device", "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path", "deepspeed_hostfile",
    "deepspeed_exclusion_filter", "deepspeed_inclusion_filter")}  # fmt: skip
