"""The regions that have KMS."""

from __future__ import annotations

__all__ = ["REGIONS", "region_label"]

REGIONS = {
    "ap-guangzhou": "Guangzhou 广州",
    "ap-shanghai": "Shanghai 上海",
    "ap-beijing": "Beijing 北京",
    "ap-nanjing": "Nanjing 南京",
    "ap-chengdu": "Chengdu 成都",
    "ap-chongqing": "Chongqing 重庆",
    "ap-hongkong": "Hong Kong 中国香港",
    "ap-singapore": "Singapore 新加坡",
    "ap-bangkok": "Bangkok 曼谷",
    "ap-jakarta": "Jakarta 雅加达",
    "ap-mumbai": "Mumbai 孟买",
    "ap-seoul": "Seoul 首尔",
    "ap-tokyo": "Tokyo 东京",
    "eu-frankfurt": "Frankfurt 法兰克福",
    "na-ashburn": "Virginia 弗吉尼亚",
    "na-siliconvalley": "Silicon Valley 硅谷",
    "sa-saopaulo": "São Paulo 圣保罗",
}
"""Regions that have KMS, with their names in English and Chinese."""


def region_label(code: str) -> str:
    """Return the name of a region with its code.

    Example:
        >>> region_label("ap-guangzhou"), region_label("ap-elsewhere")
        ('Guangzhou 广州 (ap-guangzhou)', 'ap-elsewhere')
    """
    return f"{REGIONS[code]} ({code})" if code in REGIONS else code
