"""Modules here read and write the layouts of logs. Each layout has one file, which is loaded when it is needed."""

READERS = {
    "obd": "rlrec.app.imports.layouts.obd:Obd",
    "jsonl": "rlrec.app.imports.layouts.jsonl:Jsonl",
    "dsjson": "rlrec.app.imports.layouts.dsjson:DsJson",
    "vw": "rlrec.app.imports.layouts.vw:Vw",
    "parquet": "rlrec.app.imports.layouts.parquet:Parquet",
    "csv": "rlrec.app.imports.layouts.csv_map:CsvMap",
}
WRITERS = {
    "jsonl": "rlrec.app.imports.layouts.writers:JsonLines",
    "csv": "rlrec.app.imports.layouts.writers:CsvWriter",
    "dsjson": "rlrec.app.imports.layouts.writers:DsJsonWriter",
    "vw": "rlrec.app.imports.layouts.writers:VwWriter",
    "parquet": "rlrec.app.imports.parquet_files:export",
}
GROWING = ("dsjson", "jsonl", "vw")  # layouts that can be followed: no line needs later ones
FOLDERS = ("parquet",)  # layouts that are written into a folder, by functions of the store and the folder
