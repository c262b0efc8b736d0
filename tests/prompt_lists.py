"""Prompts that the default checkpoint should and should not take for known. None was looked at when its threshold was chosen."""

REWORDED = [
    "glass smashing on the floor", "a wolf howling at night", "an owl in the woods", "somebody chops firewood",
    "a train blowing its whistle", "the engine of a truck starts up", "a big dog is barking", "a cat is meowing", "a crow is cawing",
    "bees buzzing around", "heavy rain falling", "a strong gust of wind", "loud thunder", "a creaking door", "someone slams the door",
    "a door being unlocked", "walking up the stairs", "steps on wooden floor", "boots walking on snow", "a machine gun firing",
    "a shotgun being reloaded", "a cannon shot", "fireworks exploding", "a huge explosion far away", "swords clashing in a battle",
    "an arrow hitting a target", "a horse galloping by", "cows mooing", "a rooster crowing at dawn", "frogs croaking",
    "water boiling in a pot", "a stream of flowing water", "splashing in a pool", "bubbles under water", "a helicopter flying overhead",
    "a jet plane passing", "a chainsaw cutting a tree", "a blacksmith hitting an anvil", "a telephone ringing",
    "an alarm clock goes off", "a crowd cheering and clapping", "a woman screaming", "an evil man laughs", "a monster growling",
    "an acoustic guitar chord", "hitting a snare drum", "a trumpet playing a fanfare", "an 8-bit jump sound",
    "coins dropping on a table", "a spaceship laser", "an electric spark", "a camera taking a picture",
]  # fmt: skip
COMPOSED = [
    "a dog barks twice, followed by thunder", "glass breaks, then a woman screams", "a door opens and footsteps on wood follow",
    "rain falls while an owl hoots", "a sword is drawn and then swords clash", "an explosion followed by rocks falling",
    "a horse neighs and gallops away", "a gun is reloaded and fired three times", "birds sing with a river flowing in the background",
    "a train departs while its horn blows", "a bell rings three times", "wind blows over a creaking wooden door",
]  # fmt: skip
UNRELATED = [
    "annual report of the finance department", "photosynthesis in plants", "a portrait of a young woman", "the meaning of life",
    "chocolate cake with cherries", "a map of South America", "my favourite book is about chess", "a sunset over the mountains",
    "the price of bread", "a blue triangle on a white background", "import numpy as np", "Happy New Year to all my friends",
    "the third law of thermodynamics", "an essay on human rights", "a cup of green tea", "three plus four equals seven",
    "a lawyer signs a contract", "the capital of Portugal", "delicious vegan recipes", "a haiku about loneliness",
    "click here to subscribe", "a biography of Marie Curie", "the gross domestic product", "a wedding dress made of silk",
]  # fmt: skip
FOREIGN = [
    "der Wind weht durch die Bäume", "une voiture démarre", "un gato maúlla", "il tuono rimbomba", "een deur slaat dicht",
    "en hund gjær", "vesi virtaa", "kuş sesleri", "tiếng mưa rơi", "гром гремит", "дверь скрипит", "ψαλμωδία",
    "鳥が鳴く", "打雷的声音", "개가 짖는다",
    "صوت المطر", "बारिश की आवाज़", "เสียงฝนตก",
]  # fmt: skip
JUNK = ["?!?", ".....", "-- --", "???", "*", "«»", "🚗💨", "🌊", "👏👏👏", "🐸", "0000", "%%%", "\u200b", "a" * 900, "zxq " * 60]
