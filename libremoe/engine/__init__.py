"""Many requests through one model: sequence, kv_cache, scheduler, runner, engine (synchronous), threaded (asyncio)."""
