"""What the vendors' tools print, in the shape that public sources show; the values are our own.

- nvidia-smi -q -x: test data of Checkmk's agent (Checkmk/checkmk) and of CEEMS (mahendrapaipuri/ceems), DTD v12.
- KFD: ROCm's documentation, "KFD Topology"; amd-smi static --json: "AMD SMI CLI tool usage", before and since ROCm 7.
- rocm-smi --json: the keys that ROCm 5 ("Card series") and ROCm 6 ("Card Series") write.
- npu-smi info: "Installation" of vllm-ascend; its tests and those of gpustat (wookayin/gpustat).
- system_profiler SPDisplaysDataType -json: public captures of M1 to M5 machines."""

from __future__ import annotations

NVML = """{"driver": "570.124.06", "cuda": "12.8", "devices": [
 {"index": 0, "name": "NVIDIA H100 80GB HBM3", "total": 85520809984, "free": 85014478848, "compute": [9, 0],
  "mig": false, "ecc": true, "processes": 2, "pcie_generation": 5, "pcie_width": 16, "nvlinks": 18, "slices": []},
 {"index": 1, "name": "NVIDIA H100 80GB HBM3", "total": 85520809984, "free": 85014478848, "compute": [9, 0],
  "mig": true, "ecc": true, "processes": 0, "pcie_generation": 5, "pcie_width": 16, "nvlinks": 18, "slices": [
   {"name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "total": 42143645696, "free": 42100000000},
   {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "total": 10468982784, "free": 10468982784}]},
 {"index": 2, "lost": true},
 {"index": 3, "name": "NVIDIA H100 80GB HBM3", "total": null, "free": null, "compute": null, "mig": true,
  "ecc": null, "processes": null, "pcie_generation": null, "pcie_width": null, "nvlinks": 0, "slices": []}]}
"""

NVIDIA_SMI = """<?xml version="1.0" ?>
<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">
<nvidia_smi_log>
  <timestamp>Fri Aug  4 11:44:30 2023</timestamp>
  <driver_version>535.129.03</driver_version>
  <cuda_version>12.2</cuda_version>
  <attached_gpus>2</attached_gpus>
  <gpu id="00000000:01:00.0">
    <product_name>NVIDIA GeForce RTX 4090</product_name>
    <product_architecture>Ada Lovelace</product_architecture>
    <mig_mode><current_mig>N/A</current_mig><pending_mig>N/A</pending_mig></mig_mode>
    <mig_devices>None</mig_devices>
    <fb_memory_usage>
      <total>24564 MiB</total><reserved>346 MiB</reserved><used>1200 MiB</used><free>23017 MiB</free>
    </fb_memory_usage>
    <ecc_mode><current_ecc>N/A</current_ecc><pending_ecc>N/A</pending_ecc></ecc_mode>
    <processes><process_info><pid>4711</pid><used_memory>1100 MiB</used_memory></process_info></processes>
  </gpu>
  <gpu id="00000000:81:00.0">
    <product_name>NVIDIA A100-SXM4-40GB</product_name>
    <mig_mode><current_mig>Enabled</current_mig><pending_mig>Enabled</pending_mig></mig_mode>
    <mig_devices>
      <mig_device><index>0</index><gpu_instance_id>1</gpu_instance_id>
        <fb_memory_usage><total>20096 MiB</total><used>37 MiB</used><free>20059 MiB</free></fb_memory_usage>
      </mig_device>
    </mig_devices>
    <fb_memory_usage><total>40960 MiB</total><used>N/A</used><free>N/A</free></fb_memory_usage>
    <ecc_mode><current_ecc>Enabled</current_ecc><pending_ecc>Enabled</pending_ecc></ecc_mode>
    <processes></processes>
  </gpu>
</nvidia_smi_log>
"""

KFD_CPU = "cpu_cores_count 96\nsimd_count 0\nmem_banks_count 1\ngfx_target_version 0\nvendor_id 0\ndrm_render_minor 0\n"
KFD_GPU = (
    "cpu_cores_count 0\nsimd_count 1216\nmem_banks_count 1\ngfx_target_version 90402\nvendor_id 4098\n"
    "device_id 29857\ndrm_render_minor {minor}\nunique_id 4376936076086227261\nnum_xcc 8\n"
)
KFD_BANK = "heap_type 1\nsize_in_bytes 206141652992\nflags 0\nwidth 8192\nmem_clk_max 1300\n"

AMD_SMI = """[{"gpu": 0, "asic": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002",
 "device_id": "0x74a1", "target_graphics_version": "gfx942", "num_compute_units": 304},
 "driver": {"name": "amdgpu", "version": "6.10.5"},
 "vram": {"type": "HBM", "vendor": "N/A", "size": {"value": 196592, "unit": "MB"}, "bit_width": 8192}}]
"""
AMD_SMI_7 = '{"gpu_data": ' + AMD_SMI.strip() + "}"

ROCM_SMI = """{"card0": {"Card Series": "AMD Instinct MI300X", "Card Model": "0x74a1", "Card SKU": "M3000100",
 "GFX Version": "gfx942", "VRAM Total Memory (B)": "206141652992", "VRAM Total Used Memory (B)": "301989888"},
 "card1": {"Card series": "Radeon RX 7900 XTX", "Card model": "0x5302",
 "VRAM Total Memory (B)": "25753026560", "VRAM Total Used Memory (B)": "27848704"},
 "system": {"Driver version": "6.10.5"}}
"""

NPU_SMI = """+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2C              | OK            | 86.8        35                0    / 0             |
| 0                         | 0000:66:00.0  | 0           0    / 0          59356/ 65536         |
+===========================+===============+====================================================+
| 1     910B2C              | Alarm         | 103.1       37                0    / 0             |
| 0                         | 0000:19:00.0  | 0           0    / 0          3437 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1712733       | python3                  | 48954                   |
| 0       0                 | 1712734       | python3                  | 6120                    |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""
NPU_SMI_310P = """| npu-smi 24.1.0                   Version: 24.1.0                                               |
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Device              | Bus-Id        | AICore(%)   Memory-Usage(MB)                       |
| 2     310P3               | OK            | NA          41                0     / 0            |
| 0     0                   | 0000:01:00.0  | 0           1743 / 44280                           |
| 2     310P3               | OK            | NA          40                0     / 0            |
| 1     1                   | 0000:01:00.0  | 0           1460 / 43693                           |
"""

SYSTEM_PROFILER = """{"SPDisplaysDataType": [{"_name": "Apple M2 Max", "spdisplays_mtlgpufamilysupport":
 "spdisplays_metal3", "spdisplays_ndrvs": [{"_name": "Color LCD"}], "spdisplays_vendor": "sppci_vendor_Apple",
 "sppci_bus": "spdisplays_builtin", "sppci_cores": "38", "sppci_device_type": "spdisplays_gpu",
 "sppci_model": "Apple M2 Max"}, {"_name": "AMD Radeon Pro 5500M", "spdisplays_vendor": "sppci_vendor_amd",
 "sppci_model": "AMD Radeon Pro 5500M", "spdisplays_vram": "8 GB"}]}
"""
